package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/scaffold"
)

// What is made and removed is package scaffold's; here is how it is asked for.
func TestNewServiceUsage(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		code int
		says string
	}{
		"Help":          {"--help", 0, "--resource"},
		"NoName":        {"", exitUsage, "cannot be the name"},
		"Name":          {"Ad-Review", exitUsage, "one word"},
		"Keyword":       {"func", exitUsage, "keyword of Go"},
		"Resource":      {"billing --resource a-b", exitUsage, "one word"},
		"Force":         {"venue --force", exitUsage, "--force only goes with --remove"},
		"RemoveOther":   {"venue --remove --resource seat", exitUsage, "leave --resource out"},
		"RemoveNothing": {"venue --remove", exitFailed, "there is no service called venue"},
		"Exists":        {"account", exitFailed, "services/account exists"},
		"NoFolder":      {"venue --dir /nonexistent/checkout", exitUsage, "/nonexistent/checkout"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"new", "service"}, strings.Fields(c.args)...)
			require.Equal(t, c.code, run(t.Context(), args, strings.NewReader(""), &stdout, &stderr), "%s%s", &stdout, &stderr)
			require.Contains(t, stdout.String()+stderr.String(), c.says)
		})
	}
}

// A checkout elsewhere is named, whatever the working directory is in.
func TestNewServiceElsewhere(t *testing.T) {
	t.Setenv("MARQUEE_ROOT", "") // restored, whatever --dir sets
	elsewhere := t.TempDir()
	t.Chdir(t.TempDir())
	var stdout, stderr bytes.Buffer
	args := []string{"new", "service", "venue", "--dir", elsewhere}
	require.Equal(t, exitFailed, run(t.Context(), args, strings.NewReader(""), &stdout, &stderr))
	require.Contains(t, stderr.String(), "MARQUEE_ROOT is not a checkout of Marquee")
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "go.work"), nil, 0o600))
	stderr.Reset()
	require.Equal(t, exitFailed, run(t.Context(), args, strings.NewReader(""), &stdout, &stderr))
	require.Contains(t, stderr.String(), "no programs below "+elsewhere)
}

func TestNewServiceOutput(t *testing.T) {
	var stdout, stderr bytes.Buffer
	e := &env{stdout: &stdout, stderr: &stderr}
	done := scaffold.Changes{Made: []string{"services/venue/venue.go"}, Changed: []string{"go.work"}, Removed: []string{}}
	require.NoError(t, (&newServiceCmd{Name: "venue"}).print(e, done))
	for _, text := range []string{"made     services/venue/venue.go\n", "changed  go.work\n", "make generate", "make up", "marquee new service venue --remove"} {
		require.Contains(t, stdout.String(), text)
	}
	stdout.Reset()
	require.NoError(t, (&newServiceCmd{Name: "venue", JSON: true}).print(e, done))
	var printed scaffold.Changes
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &printed))
	require.Equal(t, done, printed)
}
