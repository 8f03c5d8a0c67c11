"""Completion scripts for bash and zsh, made from the parser itself: commands, options, and files where they belong."""

import argparse
from collections.abc import Iterator
from typing import Final

_BASH: Final = """# bash completion for runtime: eval "$(runtime completion bash)"
_runtime_completion() {
    local words current previous command candidates
    current="${COMP_WORDS[COMP_CWORD]}"
    previous="${COMP_WORDS[COMP_CWORD-1]}"
    command="${COMP_WORDS[1]}"
    [ "$command" = trust ] && [ "$COMP_CWORD" -gt 2 ] && command="trust ${COMP_WORDS[2]}"
    [ "$COMP_CWORD" -eq 1 ] && command=""
    case "$previous" in
        @VALUES@) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case "$command" in
@CASES@
        *) candidates="" ;;
    esac
    COMPREPLY=($(compgen -W "$candidates" -- "$current"))
    [ "${#COMPREPLY[@]}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}
complete -o filenames -F _runtime_completion runtime
"""
_ZSH: Final = """#compdef runtime
# zsh completion for runtime: eval "$(runtime completion zsh)"
_runtime() {
    local command="${words[2]}"
    [ "$command" = trust ] && [ "$CURRENT" -gt 3 ] && command="trust ${words[3]}"
    [ "$CURRENT" -eq 2 ] && command=""
    local -a candidates
    case "$command" in
@CASES@
        *) candidates=() ;;
    esac
    compadd -- "${candidates[@]}"
    _files
}
compdef _runtime runtime
"""


def bash_script(parser: argparse.ArgumentParser) -> str:
    """Return the script for bash."""
    cases = "\n".join(f'        "{name}") candidates="{" ".join(words)}" ;;' for name, words in _table(parser))
    values = "|".join(sorted(set(_path_options(parser)))) or "--prefix"
    return _BASH.replace("@CASES@", cases).replace("@VALUES@", values)


def zsh_script(parser: argparse.ArgumentParser) -> str:
    """Return the script for zsh."""
    cases = "\n".join(f'        "{name}") candidates=({" ".join(words)}) ;;' for name, words in _table(parser))
    return _ZSH.replace("@CASES@", cases)


def _table(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield every command, the empty name being none yet, with the words that may follow it."""
    words: list[str] = []
    for action in parser._actions:  # noqa: SLF001 # argparse has no public way to list them
        words += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 # the same
            words += list(action.choices)
            for child, sub in action.choices.items():
                yield from _table(sub, f"{name} {child}".strip())
        elif action.choices is not None:
            words += [str(choice) for choice in action.choices]
    yield name, words


def _path_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001 # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 # the same
            for sub in action.choices.values():
                yield from _path_options(sub)
        elif action.metavar in {"DIR", "FILE", "ALLOWED_SIGNERS"}:
            yield from action.option_strings
