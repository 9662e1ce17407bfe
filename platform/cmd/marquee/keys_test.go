package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// keysCommand runs one command in a checkout of its own.
func keysCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, problems strings.Builder
	code = run(t.Context(), append([]string{"keys"}, args...), strings.NewReader(""), &out, &problems)
	return code, out.String(), problems.String()
}

func TestKeys(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "go.work"), nil, 0o600))
	t.Setenv("MARQUEE_ROOT", root)
	must := func(args ...string) string {
		t.Helper()
		code, out, problems := keysCommand(t, args...)
		require.Zero(t, code, problems)
		return out
	}
	require.Contains(t, must("new", "--env", "test", "--servers", "1", "--clients", "1"), "keys for 2 machines")
	require.Contains(t, must("new", "--env", "test", "--servers", "3", "--clients", "2"), "keys for 5 machines")
	require.Contains(t, must("new", "--env", "test", "--node", "edge-1=client", "--node", "server-1=server", "--servers", "3"), "keys for 6 machines")
	require.Contains(t, must("new", "--env", "named", "--node", "edge-1=client", "--node", "main-1=server"), "keys for 2 machines")
	require.Contains(t, must("new", "--env", "usual"), "keys for 5 machines")

	shown := must("show", "--env", "test")
	for _, name := range []string{"ca", "operator", "server-3", "client-2", "edge-1"} {
		require.Contains(t, shown, "\n"+name+" ")
	}
	secrets, err := os.ReadFile(filepath.Join(root, ".marquee/environments/test/keys/secrets.json"))
	require.NoError(t, err)
	for line := range strings.Lines(string(secrets)) {
		if _, value, ok := strings.Cut(line, `": "`); ok {
			require.NotContains(t, shown+must("show", "--env", "test", "--json"), strings.Trim(value, "\",\n"), "a secret is shown")
		}
	}

	require.Contains(t, must("rotate", "--env", "test", "gossip", "certificates"), "there is no cluster yet")
	require.Contains(t, must("show", "--env", "test"), "the gossip keys were rotated")

	require.Contains(t, must("rotate", "--env", "named", "ca"), "there is no cluster yet")
	require.Contains(t, must("show", "--env", "named"), "the old one still signs")
	require.Contains(t, must("rotate", "--env", "named", "certificates"), "there is no cluster yet")
	require.Contains(t, must("show", "--env", "named"), "then marquee keys withdraw ca")
	require.Contains(t, must("withdraw", "--env", "named", "ca"), "the old one is trusted no more")
	require.NotContains(t, must("show", "--env", "named"), "the CA was rotated")

	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"CABeforeAllTrustIt": {[]string{"rotate", "--env", "usual", "ca", "certificates"}, "when all machines have got the new ca.pem"},
		"EvenServers":        {[]string{"new", "--env", "test", "--servers", "2"}, "want 1, 3, 5 or 7"},
		"NoServers":          {[]string{"new", "--env", "test", "--servers", "0"}, "want 1, 3, 5 or 7"},
		"Clients":            {[]string{"new", "--env", "test", "--clients=-1"}, "--clients -1"},
		"Environment":        {[]string{"new", "--env", "../test"}, "is no name for an environment"},
		"Node":               {[]string{"new", "--env", "test", "--node", "edge-2"}, "want NAME=server or NAME=client"},
		"Twice":              {[]string{"new", "--env", "test", "--node", "edge-2=client", "--node", "edge-2=server"}, "two machines are called edge-2"},
		"Role":               {[]string{"new", "--env", "test", "--node", "edge-2=edge"}, `the role of edge-2 is "edge"`},
		"NoKeys":             {[]string{"show", "--env", "other"}, "marquee keys new"},
		"RotateNoKeys":       {[]string{"rotate", "--env", "other", "gossip"}, "marquee keys new"},
		"Kind":               {[]string{"rotate", "--env", "test", "passwords"}, "passwords"},
		"RotatedAlready":     {[]string{"rotate", "--env", "test", "gossip"}, "marquee keys apply"},
		"NoCluster":          {[]string{"apply", "--env", "test"}, "no such environment"},
		"Withdraw":           {[]string{"withdraw", "--env", "test"}, "no such environment"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, problems := keysCommand(t, test.args...)
			require.NotZero(t, code)
			require.Contains(t, problems, test.says)
		})
	}
}
