# Completion of gpuctl for bash, with or without the package bash-completion.

_gpuctl() {
    # Bash splits words at = and : too. They are put together again, without their quotes.
    local part rest=${COMP_LINE:0:COMP_POINT} trimmed words=()
    for part in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        trimmed=${rest#"${rest%%[![:space:]]*}"}
        [[ ${#words[@]} -gt 0 && $trimmed == "$rest" ]] || words+=("")
        [[ $trimmed == "$part"* ]] || part=$trimmed
        rest=${trimmed#"$part"}
        words[${#words[@]} - 1]+=${part//[\"\'\\]/}
    done
    local typed=${words[${#words[@]} - 1]} line value reply
    mapfile -t reply < <(command gpuctl complete -- "${words[@]}" 2>/dev/null)
    COMPREPLY=()
    case ${reply[0]-} in
        values)
            for line in "${reply[@]:1}"; do
                value=${line%%$'\t'*}
                # What is to the left of a = or : stays where it is.
                printf -v value %q "${value#"${typed%"$2"}"}"
                COMPREPLY+=("$value")
            done
            [[ ${#COMPREPLY[@]} -ne 1 || $value != *= ]] || compopt -o nospace
            ;;
        files)
            compopt -o default
            ;;
        command)
            local first=1
            while [[ ${COMP_WORDS[first++]} != -- ]]; do :; done
            if declare -F _comp_command_offset >/dev/null; then
                _comp_command_offset "$first"
            elif declare -F _command_offset >/dev/null; then
                _command_offset "$first"
            else
                compopt -o default
                [[ $COMP_CWORD -ne $first ]] || mapfile -t COMPREPLY < <(compgen -c -- "$2")
            fi
            ;;
    esac
}

complete -o nosort -F _gpuctl gpuctl
