"""The one format of audio and features: 16 kHz, 80 log-mel filter banks every 10 ms."""

SAMPLING_RATE = 16000  # Hz
FEATURE_DIM = 80  # filter banks
FRAMES_PER_SECOND = 100  # of features
FRAME_SECONDS = 0.01
FRAME_SAMPLES = 160
