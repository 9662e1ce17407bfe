package environment_test

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
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

func saved(t *testing.T, root string) *environment.Environment {
	t.Helper()
	_, err := keys.Ensure(environment.KeysFolder(root, "local"), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	e := &environment.Environment{
		Name: "local", NomadAddr: "https://10.77.0.11:4646", ConsulAddr: "https://10.77.0.11:8501", CAFile: "ca.pem",
		Servers: []string{"10.77.0.11"}, Edge: []string{"10.77.0.101"},
	}
	require.NoError(t, e.Save(root))
	return e
}

func TestSaveAndLoad(t *testing.T) {
	root := t.TempDir()
	want := saved(t, root)
	have, err := environment.Load(root, "local")
	require.NoError(t, err)
	require.Equal(t, want.Servers, have.Servers)
	require.Equal(t, want.Edge, have.Edge)
	require.Equal(t, filepath.Join(root, ".marquee", "environments", "local"), have.Dir())
	info, err := os.Stat(filepath.Join(have.Dir(), "environment.json"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	names, err := environment.Names(root)
	require.NoError(t, err)
	require.Equal(t, []string{"local"}, names)

	env := map[string]string{}
	for _, v := range have.Env() {
		env[v.Name] = v.Value
	}
	require.Equal(t, map[string]string{
		"NOMAD_ADDR": "https://10.77.0.11:4646", "NOMAD_TOKEN": have.Keys().Secrets.NomadManagement,
		"NOMAD_CACERT": have.Keys().CAFile(), "NOMAD_TLS_SERVER_NAME": "server.global.nomad",
		"CONSUL_HTTP_ADDR": "https://10.77.0.11:8501", "CONSUL_HTTP_TOKEN": have.Keys().Secrets.ConsulManagement,
		"CONSUL_CACERT": have.Keys().CAFile(), "CONSUL_TLS_SERVER_NAME": "server.dc1.consul", "MARQUEE_ENVIRONMENT": "local",
	}, env)
}

func TestLoadSaysWhatIsMissing(t *testing.T) {
	load := func(root string) error {
		_, err := environment.Load(root, "local")
		return err
	}
	t.Run("Environment", func(t *testing.T) {
		root := t.TempDir()
		require.ErrorIs(t, load(root), environment.ErrUnknown)
		require.ErrorContains(t, load(root), "there is none yet")
		saved(t, root)
		_, err := environment.Load(root, "hcloud")
		require.ErrorContains(t, err, "there are: local")
	})
	t.Run("Name", func(t *testing.T) {
		for _, name := range []string{"", "..", "a/b", "Local", "1a", "a-"} {
			_, err := environment.Load(t.TempDir(), name)
			require.ErrorContains(t, err, "is no name for an environment")
		}
	})
	t.Run("Keys", func(t *testing.T) {
		root := t.TempDir()
		saved(t, root)
		require.NoError(t, os.RemoveAll(environment.KeysFolder(root, "local")))
		require.ErrorIs(t, load(root), keys.ErrMissing)
	})
	t.Run("GoodCertificate", func(t *testing.T) {
		root := t.TempDir()
		_, err := keys.Ensure(environment.KeysFolder(root, "local"), keys.Nodes(1, 1), time.Now().AddDate(-2, 0, 0))
		require.NoError(t, err)
		require.NoError(t, (&environment.Environment{Name: "local", NomadAddr: "https://a:1", ConsulAddr: "https://a:2", Servers: []string{"10.0.0.1"}}).Save(root))
		require.ErrorContains(t, load(root), "the certificate of operator")
		require.ErrorContains(t, load(root), "marquee keys rotate certificates")
	})
	for name, test := range map[string]struct{ text, says string }{
		"JSON":       {`{`, "terraform's output"},
		"Another":    {`{"name":"hcloud"}`, `about the environment "hcloud"`},
		"PlainHTTP":  {`{"name":"local","nomad_addr":"http://a:4646","consul_addr":"https://a:8501"}`, "nomad_addr"},
		"NoServers":  {`{"name":"local","nomad_addr":"https://a:4646","consul_addr":"https://a:8501"}`, "servers is empty"},
		"BadAddress": {`{"name":"local","nomad_addr":"https://a:4646","consul_addr":"https://a:8501","servers":["a"]}`, `servers has "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			saved(t, root)
			require.NoError(t, os.WriteFile(filepath.Join(environment.Folder(root, "local"), "environment.json"), []byte(test.text), 0o600))
			require.ErrorContains(t, load(root), test.says)
		})
	}
}

// The clients trust whoever proves to be a server of this environment, at any
// address, and nobody else; and they show the operator's token there alone.
func TestClientsTrustServersOnly(t *testing.T) {
	// Nothing of the caller's environment may lead the clients elsewhere.
	for name, value := range map[string]string{
		"CONSUL_HTTP_ADDR": "127.0.0.1:1", "CONSUL_CACERT": "/nowhere", "CONSUL_HTTP_TOKEN": "x", "CONSUL_TLS_SERVER_NAME": "x",
		"NOMAD_ADDR": "http://127.0.0.1:1", "NOMAD_CACERT": "/nowhere", "NOMAD_TOKEN": "x", "NOMAD_TLS_SERVER_NAME": "x",
	} {
		t.Setenv(name, value)
	}
	k, err := keys.Ensure(filepath.Join(t.TempDir(), "keys"), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	for node, good := range map[string]bool{"server-1": true, "client-1": false} {
		t.Run(node, func(t *testing.T) {
			tokens := map[string]string{}
			own, err := k.Node(node)
			require.NoError(t, err)
			pair, err := tls.X509KeyPair(own.Certificate, own.Key)
			require.NoError(t, err)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tokens["consul"] += r.Header.Get("X-Consul-Token")
				tokens["nomad"] += r.Header.Get("X-Nomad-Token")
				_, _ = w.Write([]byte(`"10.0.0.1:8300"`))
			}))
			pool := x509.NewCertPool()
			require.True(t, pool.AppendCertsFromPEM(k.CA))
			server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
			server.StartTLS()
			defer server.Close()
			e := environment.New(environment.Environment{Name: "local", NomadAddr: server.URL, ConsulAddr: server.URL, Servers: []string{"127.0.0.1"}}, k)
			consul, err := e.Consul()
			require.NoError(t, err)
			nomad, err := e.Nomad()
			require.NoError(t, err)
			_, fromConsul := consul.Status().Leader()
			_, fromNomad := nomad.Status().Leader()
			if good {
				require.NoError(t, fromConsul)
				require.NoError(t, fromNomad)
				require.Equal(t, map[string]string{"consul": k.Secrets.ConsulManagement, "nomad": k.Secrets.NomadManagement}, tokens)
				return
			}
			require.ErrorContains(t, fromConsul, keys.ConsulServerName)
			require.ErrorContains(t, fromNomad, keys.NomadServerName)
			require.Empty(t, tokens, "the operator's tokens were shown to a machine that is no server")
		})
	}
}

func TestDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	conn, err := (&environment.Environment{}).Dial(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	conn.Close()
	_, err = (&environment.Environment{Box: filepath.Join(t.TempDir(), "box")}).Dial(t.Context(), "tcp", l.Addr().String())
	if os.Getuid() == 0 {
		require.ErrorContains(t, err, "make vms")
	} else {
		require.ErrorContains(t, err, "marquee vms shell")
	}
}
