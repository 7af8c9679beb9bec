package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// CompletionCmd is `ctrloop completion`.
type CompletionCmd struct {
	Shell string `arg:"" help:"bash, zsh or fish." enum:"bash,zsh,fish"`
}

// completionScripts ask the binary what may come next, so that they are right for every version of it.
var completionScripts = map[string]string{
	"bash": `# bash completion of ctrloop
_ctrloop() {
	local IFS=$'\n'
	COMPREPLY=($(ctrloop complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _ctrloop ctrloop
`,
	"zsh": `#compdef ctrloop
_ctrloop() {
	local -a found
	found=("${(@f)$(ctrloop complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n "$found[1]" ]]; then
		compadd -Q -a found
	else
		_files
	fi
}
if [[ "$funcstack[1]" = _ctrloop ]]; then
	_ctrloop "$@"
else
	compdef _ctrloop ctrloop
fi
`,
	"fish": `# fish completion of ctrloop
function __ctrloop_complete
	set -l words (commandline -opc) (commandline -ct)
	ctrloop complete -- $words[2..-1] 2>/dev/null
end
complete -c ctrloop -a '(__ctrloop_complete)'
`,
}

// Run prints the script.
func (c *CompletionCmd) Run(out *output) error {
	_, err := fmt.Fprint(out.stdout, completionScripts[c.Shell])
	return err
}

// CompleteCmd is what the scripts call.
type CompleteCmd struct {
	Words []string `arg:"" optional:"" help:"The words after ctrloop; the last one is being written."`
}

// Run prints what the last word may become, one a line. Nothing: the shell offers files.
func (c *CompleteCmd) Run(ctx *kong.Context, out *output) error {
	for _, word := range candidates(ctx.Model.Node, c.Words) {
		if _, err := fmt.Fprintln(out.stdout, word); err != nil {
			return err
		}
	}
	return nil
}

// candidates of the last word, behind the ones before it.
func candidates(root *kong.Node, words []string) []string {
	// bash makes three words of --format=csv.
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "=" })
	if len(words) == 0 {
		words = []string{""}
	}
	before, last := words[:len(words)-1], words[len(words)-1]
	node, args := root, 0
	var open *kong.Flag // the word before is this flag, and its value comes next
	for _, w := range before {
		switch {
		case open != nil:
			open = nil
		case strings.HasPrefix(w, "-"):
			if f := flagOf(node, w); f != nil && !f.IsBool() && !f.IsCounter() && !strings.Contains(w, "=") {
				open = f
			}
		default:
			if child := childOf(node, w); child != nil {
				node = child
			} else {
				args++
			}
		}
	}
	name, _, valued := strings.Cut(last, "=")
	switch {
	case open != nil:
		return matching(last, enum(open.Value))
	case strings.HasPrefix(last, "-") && valued:
		if f := flagOf(node, name); f != nil {
			return matching(last, prefixed(name+"=", enum(f.Value)))
		}
		return nil
	case strings.HasPrefix(last, "-"):
		return matching(last, flagNames(node))
	}
	var all []string
	for _, child := range node.Children {
		if !child.Hidden {
			all = append(all, child.Name)
		}
	}
	if args < len(node.Positional) {
		all = append(all, enum(node.Positional[args])...)
	}
	return matching(last, all)
}

// flagOf is the flag that a word names, nil for none.
func flagOf(node *kong.Node, word string) *kong.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	for _, group := range node.AllFlags(false) {
		for _, f := range group {
			if f.Name == name || string(f.Short) == name {
				return f
			}
		}
	}
	return nil
}

func flagNames(node *kong.Node) (names []string) {
	for _, group := range node.AllFlags(true) {
		for _, f := range group {
			names = append(names, "--"+f.Name)
		}
	}
	return names
}

func childOf(node *kong.Node, name string) *kong.Node {
	for _, child := range node.Children {
		if child.Name == name {
			return child
		}
	}
	return nil
}

// enum are the values of a closed list, none for an open one.
func enum(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return slices.DeleteFunc(v.EnumSlice(), func(s string) bool { return s == "" })
}

func prefixed(prefix string, words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = prefix + w
	}
	return out
}

func matching(prefix string, words []string) []string {
	words = slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, prefix) })
	slices.Sort(words)
	return words
}
