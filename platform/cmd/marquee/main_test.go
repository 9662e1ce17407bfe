package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{name: "NoArguments", code: 0, stdout: "Exit codes:"},
		{name: "Help", args: []string{"invoke", "--help"}, code: 0, stdout: "SERVICE/METHOD"},
		{name: "UnknownCommand", args: []string{"fly"}, code: exitUsage, stderr: "fly"},
		{name: "MissingArgument", args: []string{"logs"}, code: exitUsage, stderr: "<service>"},
		{name: "WrongFlag", args: []string{"invoke", "a/b", "--as", "root"}, code: exitUsage, stderr: "--as"},
		{name: "BothTokens", args: []string{"invoke", "a/b", "--as", "demo", "--token", "x"}, code: exitUsage, stderr: "--token"},
		{name: "NotRunning", args: []string{"--cluster", "never-was", "status"}, code: exitNotRunning, stdout: "nomad-client  -    -", stderr: "marquee --cluster never-was up starts it"},
		{name: "DownOfNothing", args: []string{"--cluster", "never-was", "down", "--wipe"}, code: 0, stderr: "there is no cluster called never-was"},
		{name: "ClusterElsewhere", args: []string{"--cluster", "../tools", "down", "--wipe"}, code: exitUsage, stderr: `"../tools" is no name for a cluster`},
		{name: "ClusterOfAll", args: []string{"--cluster", "", "down", "--wipe"}, code: exitUsage, stderr: `"" is no name for a cluster`},
		{name: "UnknownService", args: []string{"--cluster", "never-was", "jobs", "deploy", "nothing"}, code: exitFailed, stderr: `there is no service "nothing": want one of `},
		{name: "UnknownVariable", args: []string{"--cluster", "never-was", "jobs", "deploy", "--var", "account_cout=2"}, code: exitFailed, stderr: `there is no variable "account_cout" in nomad-jobs/account.nomad.hcl`},
		{name: "DrainAtOnce", args: []string{"nodes", "drain", "client-1", "--deadline=-1s"}, code: exitUsage, stderr: "--deadline=-1s: want more than 0s"},
		{name: "Repository", args: []string{"images", "--push", "Not A Repository"}, code: exitUsage, stderr: `"Not A Repository" is no repository`},
		{name: "UnknownTool", args: []string{"tools", "hammer"}, code: exitFailed, stderr: "there are nomad, consul, "},
		{name: "Tools", args: []string{"tools", "--help"}, code: 0, stdout: "golangci-lint"},
		{name: "Watch", args: []string{"watch", "--help"}, code: 0, stdout: "watch devices"},
		{name: "WatchRate", args: []string{"watch", "account", "--rate", "0"}, code: exitFailed, stderr: "--rate=0: want 1 to 10000"},
		{name: "WatchNothing", args: []string{"watch"}, code: exitUsage, stderr: "<service>"},
		{name: "WatchAsNobody", args: []string{"watch", "devices", "--as", "root"}, code: exitUsage, stderr: "--as"},
		{name: "WatchNotRunning", args: []string{"--cluster", "never-was", "watch", "devices"}, code: exitNotRunning, stderr: "up starts it"},
		{name: "Version", args: []string{"version", "--json"}, code: 0, stdout: `"go": "go1.`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), c.args, strings.NewReader(""), &stdout, &stderr)
			require.Equal(t, c.code, code, stderr.String())
			require.Contains(t, stdout.String(), c.stdout)
			require.Contains(t, stderr.String(), c.stderr)
		})
	}
}
