package service

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/hashicorp/go-hclog"
)

const envPrefix = "MARQUEE_"

// toolVariables are those that marquee and the tools read; "marquee env" exports
// them to every process.
var toolVariables = []string{"MARQUEE_CLUSTER", "MARQUEE_ROOT"}

// warnOfUnread names the variables of environ, as os.Environ returns it, that
// look like settings and that no flag reads: a misspelt one must not be silently
// without effect. It is no error, because a shell may be set up for more than
// one service.
func warnOfUnread(log hclog.Logger, app *kong.Application, environ []string) {
	known := []string{}
	for _, group := range app.AllFlags(false) {
		for _, flag := range group {
			known = append(known, flag.Envs...)
		}
	}
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, envPrefix) && !slices.Contains(known, name) && !slices.Contains(toolVariables, name) {
			log.Warn("no setting reads this environment variable", "variable", name, "nearest", nearest(name, known))
		}
	}
}

// nearest is the candidate with the fewest edits to name, the first of several.
func nearest(name string, candidates []string) string {
	best, fewest := "", -1
	for _, candidate := range candidates {
		if n := edits(name, candidate); fewest < 0 || n < fewest {
			best, fewest = candidate, n
		}
	}
	return best
}

// edits is the least number of bytes to insert, delete or replace to make b of
// a.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
