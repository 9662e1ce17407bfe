package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/tools"
)

// What the documents tell a person to type is there: commands with their flags,
// targets of the Makefile, scenarios and tests.
func TestDocumentsNameWhatThereIs(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	var documents []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "terraform/*.md", "examples/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		documents = append(documents, found...)
	}
	require.Greater(t, len(documents), 8)
	n := names{app: model(t), targets: targets(t, root), tests: tests(t, root)}
	checked := 0
	for _, path := range documents {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		relative, err := filepath.Rel(root, path)
		require.NoError(t, err)
		for _, typed := range codeOf(string(text)) {
			for _, problem := range n.check(typed) {
				t.Errorf("%s: %q: %s", relative, typed, problem)
			}
			checked++
		}
	}
	require.Greater(t, checked, 200, "the documents have more to type than that")

	for typed, says := range map[string]string{
		"marquee nodes drian client-1":          `no command "drian"`,
		"marquee jobs deploy --prune --no-such": "no flag --no-such",
		"make no-such ENV=local":                "no target no-such",
		"make e2e RUN=NoSuch":                   "no test or scenario NoSuch",
		"make e2e-cluster RUN=Failover/No":      "no test or scenario No",
		"as TestNoSuch shows":                   "no test or scenario TestNoSuch",
		"eval \"$(marquee no-such)\"":           `no command "no-such"`,
	} {
		require.Equal(t, []string{says}, n.check(typed), typed)
	}
}

// model is the command line as it is parsed.
func model(t *testing.T) *kong.Node {
	t.Helper()
	parser, err := kong.New(&cli{}, kong.Name("marquee"), vars())
	require.NoError(t, err)
	return parser.Model.Node
}

func targets(t *testing.T, root string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	require.NoError(t, err)
	found := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`).FindAllStringSubmatch(string(text), -1) {
		found[match[1]] = true
	}
	return found
}

// tests are the names of test functions and of what they run below them.
func tests(t *testing.T, root string) map[string]bool {
	t.Helper()
	name := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(|t\.Run\("(\w+)"|^\t+\{?"([A-Z]\w+)"[,:]`)
	found := map[string]bool{}
	for _, folder := range []string{"platform", "services", "e2e", "bench"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, folder), func(path string, d os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, match := range name.FindAllStringSubmatch(string(text), -1) {
				found[match[1]+match[2]+match[3]] = true
			}
			return err
		}))
	}
	return found
}

// codeOf are the lines of fenced blocks and the spans between backquotes.
func codeOf(text string) []string {
	var code []string
	fenced := false
	span := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
		case fenced:
			typed, _, _ := strings.Cut(line, " #")
			code = append(code, strings.TrimSpace(typed))
		default:
			for _, match := range span.FindAllStringSubmatch(line, -1) {
				code = append(code, match[1])
			}
		}
	}
	return code
}

type names struct {
	app            *kong.Node
	targets, tests map[string]bool
}

// check says what of a typed line there is not.
func (n names) check(typed string) []string {
	var problems []string
	quoted := regexp.MustCompile(`'[^']*'|"[^"]*"`)
	for part := range strings.FieldsFuncSeq(typed, func(r rune) bool { return strings.ContainsRune("|;&()<>…", r) }) {
		part = quoted.ReplaceAllString(part, "QUOTED")
		words := strings.Fields(strings.NewReplacer(`"`, " ", "'", " ", ",", " ").Replace(part))
		// Variables that are set for the command come before it.
		for len(words) > 0 && strings.Contains(words[0], "=") {
			words = words[1:]
		}
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "marquee":
			problems = append(problems, n.command(words[1:])...)
		case "make":
			problems = append(problems, n.make(words[1:])...)
		}
	}
	for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(typed, -1) {
		if !n.tests[name] {
			problems = append(problems, "no test or scenario "+name)
		}
	}
	return problems
}

func (n names) command(words []string) []string {
	node := n.app
	flags := slices.Clone(node.Flags)
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word == "--" {
			return nil // the rest is another program's
		}
		if strings.HasPrefix(word, "-") {
			name, _, given := strings.Cut(strings.TrimLeft(word, "-"), "=")
			at := slices.IndexFunc(flags, func(f *kong.Flag) bool { return f.Name == name || string(f.Short) == name })
			if at < 0 {
				return []string{"no flag " + word}
			}
			if !given && !flags[at].IsBool() {
				i++
			}
			continue
		}
		at := slices.IndexFunc(node.Children, func(child *kong.Node) bool { return child.Name == word })
		switch {
		case at >= 0:
			node = node.Children[at]
			flags = append(flags, node.Flags...)
		case node.DefaultCmd != nil:
			node = node.DefaultCmd
			flags = append(flags, node.Flags...)
		case len(node.Children) > 0:
			return []string{fmt.Sprintf("no command %q", word)}
		}
		if node.Passthrough {
			return nil
		}
	}
	return nil
}

func (n names) make(words []string) []string {
	if slices.Contains(words, "-C") {
		return nil // another folder's
	}
	var problems []string
	for _, word := range words {
		variable, value, set := strings.Cut(word, "=")
		switch {
		case !set && regexp.MustCompile(`^[a-z][a-z0-9-]*$`).MatchString(word) && !n.targets[word]:
			problems = append(problems, "no target "+word)
		case set && variable == "RUN":
			for name := range strings.SplitSeq(value, "/") {
				if !n.tests[name] && !n.tests["Test"+name] {
					problems = append(problems, "no test or scenario "+name)
				}
			}
		}
	}
	return problems
}
