"""Which label fits this video? Classification of short videos, and of windows of long ones."""
