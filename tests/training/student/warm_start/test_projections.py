import torch
from tiny_networks import build_wrapped

from modeling_radio.training.student.warm_start.projections import FINER_SHARE, PrincipalProjections


def test_each_level_has_channels_of_its_own_with_its_principal_components(one_thread):
    student = build_wrapped("class").train()
    projections, network = student.radio_model.model.projections, student.radio_model.model.network
    images = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    principal = PrincipalProjections(student)
    for groups in ([images[:8], images[8:16]], [images[16:]]):
        principal.update(groups)
    principal.fit()
    assert student.radio_model.model.training
    fine, coarse = (each.weight.flatten(1) for each in projections)
    assert fine.shape == (24, 12)
    assert coarse.shape == (24, 24)
    assert (fine[12:] == 0).all()
    assert (coarse[:12] == 0).all()
    torch.testing.assert_close(coarse[12:] @ coarse[12:].T, torch.eye(12))
    maps = network.eval()(student.radio_model.input_conditioner(images))
    means = [each.mean((2, 3)) for each in maps]
    lengths = [each.square().sum().sqrt() for each in (means[0] @ fine.T, means[1], means[1] @ coarse.T)]
    torch.testing.assert_close(lengths[0] / lengths[1], torch.tensor(FINER_SHARE), rtol=1e-3, atol=0.0)
    largest = torch.linalg.svdvals(means[1])[:12].norm()
    torch.testing.assert_close(lengths[2], largest, rtol=0.01, atol=0.0)
