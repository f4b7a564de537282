"""The scripts that make a shell ask `samepath complete` for the ways in which a word may go on."""

from typing import Literal

Shell = Literal["bash", "zsh", "fish"]

BASH = r"""# Completion of samepath in bash: source <(samepath completion bash)
_samepath() {
    local line="${COMP_LINE:0:COMP_POINT}" found head
    local -a words
    read -ra words <<<"$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    local current="${words[${#words[@]}-1]}"
    COMPREPLY=()
    # Bash puts an answer in the place of what follows the last = or : alone, if these break words.
    head=""
    [[ "$COMP_WORDBREAKS" == *=* ]] && head="${current%"${current##*[=:]}"}"
    while IFS= read -r found; do
        COMPREPLY+=("${found#"$head"}")
    done < <("${words[0]}" complete -- "${words[@]:1}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[/=.] ]] && type compopt &>/dev/null; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _samepath samepath
"""
ZSH = r"""#compdef samepath
# Completion of samepath in zsh: source <(samepath completion zsh), after compinit; or this text as _samepath in a folder of $fpath
_samepath() {
    local one
    local -a found open closed
    found=("${(@f)$("${words[1]}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    for one in $found; do
        if [[ "$one" == *[/=.] ]]; then open+=("$one"); else closed+=("$one"); fi
    done
    (( ${#open} )) && compadd -S '' -- $open
    (( ${#closed} )) && compadd -- $closed
}
if [[ "${funcstack[1]}" == _samepath ]]; then _samepath "$@"; else compdef _samepath samepath; fi
"""
FISH = r"""# Completion of samepath in fish: samepath completion fish | source
function __samepath_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l before $words[2..]
    $words[1] complete -- $before "$current" 2>/dev/null
end
complete -c samepath -f -a '(__samepath_complete)'
"""
SCRIPTS: dict[Shell, str] = {"bash": BASH, "zsh": ZSH, "fish": FISH}
