import torch
from tiny_networks import build_wrapped

from modeling_radio.demo.small_student import with_classes, with_one_summary
from modeling_radio.demo.teachers import EfficientNetLiteTeacher


def test_the_summary_of_one_adaptor_stays_and_feeds_the_classifier_of_the_teacher(one_thread):
    student = build_wrapped("ResNet", summary_idxs=[0, 1])
    images = torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images // torch.arange(1, 17)[:, None, None, None]
    pixels = images.float() / 255
    one = with_one_summary(student, "dense")
    assert one.config.adaptors == []
    expected = student(pixels).summary.chunk(2, dim=1)[1]
    torch.testing.assert_close(one(pixels).summary, expected)
    teacher = EfficientNetLiteTeacher("friend", weights="random")
    model = with_classes(one, teacher, images)
    own = one.radio_model.state_dict()
    assert all(torch.equal(each, own[key]) for key, each in model.radio_model.state_dict().items())
    assert model.config.id2label[999] == "toilet tissue"
    logits = teacher.classify(teacher.extract_features(pixels).summary)
    error = (model(pixels).logits - logits).square().mean()
    assert error < 0.5 * (logits - logits.mean(dim=0)).square().mean()
