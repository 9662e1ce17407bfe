package main

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/keys"
)

// A cluster of machines that does not know us: the error names the environment
// and what to do.
func TestReachEnvironment(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "go.work"), nil, 0o600))
	t.Setenv("MARQUEE_ROOT", root)
	ours, err := keys.Ensure(environment.KeysFolder(root, "staging"), keys.Nodes(1, 0), time.Now())
	require.NoError(t, err)
	others, err := keys.Ensure(filepath.Join(t.TempDir(), "keys"), keys.Nodes(1, 0), time.Now())
	require.NoError(t, err)

	// at makes the environment's address that of a server with somebody's keys, who
	// knows no token.
	at := func(t *testing.T, k *keys.Keys) {
		t.Helper()
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "ACL token not found", http.StatusForbidden)
		}))
		node, err := k.Node("server-1")
		require.NoError(t, err)
		pair, err := tls.X509KeyPair(node.Certificate, node.Key)
		require.NoError(t, err)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		t.Cleanup(server.Close)
		save(t, root, server.URL)
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T)
		says    []string
	}{
		"OtherTokens":    {func(t *testing.T) { at(t, ours) }, []string{"refuses the token: ACL token not found", "the tokens in " + ours.Dir + " are not the cluster's"}},
		"OtherAuthority": {func(t *testing.T) { at(t, others) }, []string{"a certificate that is not trusted", "come from another authority than the one in " + ours.Dir}},
		"NobodyThere":    {func(t *testing.T) { save(t, root, "https://127.0.0.1:1") }, []string{"Nomad at https://127.0.0.1:1 does not answer", "do the machines of environment staging run"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.prepare(t)
			for _, args := range [][]string{{"jobs", "list"}, {"jobs", "stop", "account", "--yes"}, {"nodes", "list"}} {
				code, stdout, stderr := marquee(t, "", append(args, "--env", "staging")...)
				require.Equal(t, exitFailed, code)
				require.Empty(t, stdout)
				for _, text := range c.says {
					require.Contains(t, stderr, text)
				}
			}
		})
	}
}

func save(t *testing.T, root, address string) {
	t.Helper()
	e := environment.Environment{
		Name: "staging", NomadAddr: address, ConsulAddr: address, Servers: []string{net.IPv4(127, 0, 0, 1).String()},
		CAFile: filepath.Join(environment.KeysFolder(root, "staging"), "ca.pem"),
	}
	require.NoError(t, e.Save(root))
}
