# Completion of gpuctl for fish.

function __gpuctl_complete
    set -l typed (commandline -opc)
    set -l token (commandline -ct)
    set -l reply (command gpuctl complete -- $typed "$token" 2>/dev/null)
    switch "$reply[1]"
        case values
            set -e reply[1]
            string join \n -- $reply
        case files
            set -l option (string match -r -- '^--[^=]*=' "$token")
            set -l path (string replace -r -- '^--[^=]*=' '' "$token")
            for candidate in (complete -C "'' $path")
                echo "$option$candidate"
            end
        case command
            set -l first (math (contains -i -- -- $typed) + 1)
            set -l words (string escape -- $typed[$first..-1])
            complete -C "$words $token"
    end
end

complete -c gpuctl -f -k -a '(__gpuctl_complete)'
