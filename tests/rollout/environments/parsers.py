"""Parsers that settings of tests name by their import path."""

from samepath.model.text.encodings.hermes_parser import HermesParser
from samepath.model.text.tokenizer import Tokenizer


def closed(tokenizer: Tokenizer) -> HermesParser:
    """One that reads no reasoning."""
    return HermesParser(tokenizer, opening="closed")


def nothing() -> None:
    """Takes no tokenizer."""


def no_parser(tokenizer: Tokenizer) -> int:
    """Returns something else."""
    return tokenizer.vocab_size


def short_parser(tokenizer: Tokenizer) -> object:
    """Returns something that takes ids alone."""
    return lambda ids: ids
