"""NYU in folders of its layout: colors, depth and normals of both kinds of files."""

import json

import numpy as np
import pytest
import torch
from scipy.io import savemat

from modeling_radio.evaluation.data_nyu import MEAN_COLOR
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.settings import DataOptions


def opened(folder):
    return open_data(str(folder), DataOptions(layout="nyu"), size_px=480)


def test_frames_of_both_files(nyu_folder):
    data = opened(nyu_folder)
    assert data.kinds() == {"images", "depth", "normals"}
    part = data.part("normals")
    assert (len(part.train), len(part.test)) == (2, 2)  # two of four training frames are damaged
    for examples, color in ((part.train, 90), (part.test, 1)):
        assert examples.images[0].shape == (3, *examples.images.size(0)) == (3, 480, 640)
        assert examples.images[0][:, 7, 9].tolist() == [color, color + 1, color + 2]
        assert examples.depth[0].shape == (480, 640)
        assert examples.depth[0][7, 9].item() == pytest.approx(2 + 7 / 480 + 0.09)
        assert examples.normals[0].shape == (3, 480, 640)
        assert torch.equal(examples.normals[0][:, 7, 9], torch.tensor([0.0, 0.6, 0.8]))


def test_a_part_or_damaged_files_are_refused(nyu_folder):
    first = nyu_folder / "geonet" / "0.mat"
    savemat(first, {"img": np.zeros((480, 640, 3)) - np.array(MEAN_COLOR)})
    with pytest.raises(ValueError, match=r"0\.mat"):
        opened(nyu_folder).part("depth").train.depth[0]
    first.unlink()
    with pytest.raises(ValueError, match=r"`data` .* got 3"):
        opened(nyu_folder)
    savemat(first, {"img": 0})
    names = nyu_folder / "test" / "test_SN40.json"
    names.write_text(json.dumps([{"img": "x"}, {"img": "2"}]))
    with pytest.raises(ValueError, match=names.name):
        opened(nyu_folder)
    names.write_text(json.dumps([{"img": "1"}, {"img": "2"}]))
    np.save(nyu_folder / "test" / "all_normals.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"all_normals\.npy"):
        opened(nyu_folder)
