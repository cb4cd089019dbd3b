"""The losses, one file each."""

from lexvla.losses.info_nce import InfoNCE
from lexvla.losses.overuse import overuse_penalty
from lexvla.losses.own_words import own_words_loss

__all__ = ["InfoNCE", "overuse_penalty", "own_words_loss"]
