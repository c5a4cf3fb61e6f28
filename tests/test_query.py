from memscope.query import Recording


def test_usage_counts_add_up_to_the_selections_of_the_recording(tiny_recording: Recording) -> None:
    info = tiny_recording.info
    assert tiny_recording.usage_counts().sum() == info.rows * len(info.layers) * info.selected
