package keys_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/marquee-ads/marquee/platform/keys"
)

// contents are all files below a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		found[strings.TrimPrefix(path, dir+"/")] = string(text)
		return err
	}))
	return found
}

func folder(t *testing.T) string { return filepath.Join(t.TempDir(), "environment", "keys") }

func made(t *testing.T) *keys.Keys {
	t.Helper()
	k, err := keys.Ensure(folder(t), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	return k
}

func TestEnsure(t *testing.T) {
	dir := folder(t)
	k, err := keys.Ensure(dir, keys.Nodes(3, 2), time.Now())
	require.NoError(t, err)
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for _, token := range []string{
		k.Secrets.ConsulManagement, k.Secrets.NomadManagement, k.Secrets.ConsulNomadServer, k.Secrets.ConsulNomadClient,
		k.Secrets.Nodes["server-1"], k.Secrets.Nodes["server-2"], k.Secrets.Nodes["server-3"], k.Secrets.Nodes["client-1"], k.Secrets.Nodes["client-2"],
	} {
		require.Regexp(t, uuid, token)
		require.False(t, seen[token], "a token is used twice")
		seen[token] = true
	}
	for _, key := range []string{k.Secrets.ConsulGossip, k.Secrets.NomadGossip} {
		raw, err := base64.StdEncoding.DecodeString(key)
		require.NoError(t, err)
		require.Len(t, raw, 32)
	}
	before := contents(t, dir)

	t.Run("AgainChangesNothing", func(t *testing.T) {
		_, err := keys.Ensure(dir, keys.Nodes(3, 2), time.Now())
		require.NoError(t, err)
		require.Equal(t, before, contents(t, dir))
	})
	t.Run("FewerNodesChangeNothing", func(t *testing.T) {
		_, err := keys.Ensure(dir, keys.Nodes(1, 0), time.Now())
		require.NoError(t, err)
		require.Equal(t, before, contents(t, dir))
	})
	t.Run("MoreNodesAreAdded", func(t *testing.T) {
		more, err := keys.Ensure(dir, append(keys.Nodes(3, 3), keys.Node{Name: "edge-1", Role: keys.Client, Address: "10.0.0.7"}), time.Now())
		require.NoError(t, err)
		after := contents(t, dir)
		for path, text := range before {
			if path != "secrets.json" {
				require.Equal(t, text, after[path], path)
			}
		}
		require.Len(t, after, len(before)+4, "two certificates and two keys more")
		require.Equal(t, k.Secrets.Nodes["server-1"], more.Secrets.Nodes["server-1"])
		require.Len(t, more.Secrets.Nodes, 7)
	})
	t.Run("OthersMayReadWhatIsPublicOnly", func(t *testing.T) {
		for path := range contents(t, dir) {
			info, err := os.Stat(filepath.Join(dir, path))
			require.NoError(t, err)
			public := strings.HasSuffix(path, ".pub") || (strings.HasSuffix(path, ".pem") && !strings.HasSuffix(path, "-key.pem"))
			if public {
				require.Equal(t, fs.FileMode(0o644), info.Mode().Perm(), path)
			} else {
				require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), path)
			}
		}
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	})
	t.Run("SSH", func(t *testing.T) {
		private, err := os.ReadFile(k.SSHKeyFile())
		require.NoError(t, err)
		signer, err := ssh.ParsePrivateKey(private)
		require.NoError(t, err)
		text, err := os.ReadFile(k.SSHKeyFile() + ".pub")
		require.NoError(t, err)
		public, comment, _, _, err := ssh.ParseAuthorizedKey(text)
		require.NoError(t, err)
		require.Equal(t, public.Marshal(), signer.PublicKey().Marshal())
		require.Equal(t, ssh.KeyAlgoED25519, public.Type())
		require.Empty(t, comment)
	})
}

func TestEnsureAtOnce(t *testing.T) {
	dir := folder(t)
	found := make([]*keys.Keys, 8)
	var making sync.WaitGroup
	for i := range found {
		making.Go(func() {
			var err error
			found[i], err = keys.Ensure(dir, keys.Nodes(1, 1), time.Now())
			require.NoError(t, err)
		})
	}
	making.Wait()
	for _, k := range found {
		require.Equal(t, found[0], k)
	}
}

func TestCertificates(t *testing.T) {
	k, err := keys.Ensure(folder(t), []keys.Node{
		{Name: "server-1", Role: keys.Server, Address: "10.0.0.11"}, {Name: "client-1", Role: keys.Client},
	}, time.Now())
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(k.CA))
	verify := func(text []byte, name string, usage x509.ExtKeyUsage) error {
		block, _ := pem.Decode(text)
		c, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		_, err = c.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	server, err := k.Node("server-1")
	require.NoError(t, err)
	client, err := k.Node("client-1")
	require.NoError(t, err)
	require.Equal(t, []keys.Role{keys.Server, keys.Client}, []keys.Role{server.Role, client.Role})
	for _, name := range []string{"server-1", "localhost", "127.0.0.1", "10.0.0.11", keys.ConsulServerName, keys.NomadServerName} {
		require.NoError(t, verify(server.Certificate, name, x509.ExtKeyUsageServerAuth), name)
		require.NoError(t, verify(server.Certificate, name, x509.ExtKeyUsageClientAuth), name)
	}
	require.NoError(t, verify(client.Certificate, "client.dc1.consul", x509.ExtKeyUsageServerAuth))
	for _, name := range []string{"server-1", "10.0.0.11", keys.ConsulServerName, keys.NomadServerName} {
		require.Error(t, verify(client.Certificate, name, x509.ExtKeyUsageServerAuth), name)
	}
	_, err = tls.X509KeyPair(client.Certificate, client.Key)
	require.NoError(t, err)

	operator, err := os.ReadFile(k.OperatorCertFile())
	require.NoError(t, err)
	require.NoError(t, verify(operator, "", x509.ExtKeyUsageClientAuth))
	require.Error(t, verify(operator, "", x509.ExtKeyUsageServerAuth), "the operator passes for a server")

	all, err := k.Certificates()
	require.NoError(t, err)
	require.Equal(t, "ca", all[0].Name)
	require.Len(t, all, 4)
	for _, c := range all[1:] {
		require.InDelta(t, 365*24, time.Until(c.NotAfter).Hours(), 1, c.Name)
	}
}

func TestExpiry(t *testing.T) {
	dir := folder(t)
	_, err := keys.Ensure(dir, keys.Nodes(1, 1), time.Now().AddDate(-1, 0, -2))
	require.NoError(t, err, "they were good then")
	k, err := keys.Ensure(dir, keys.Nodes(1, 2), time.Now())
	require.ErrorContains(t, err, "the certificate of operator (on ")
	require.ErrorContains(t, err, "client-1 (on ")
	require.ErrorContains(t, err, "marquee keys rotate certificates")
	require.NotContains(t, err.Error(), "client-2", "that was made today")
	require.NoError(t, k.CheckExpiry(time.Now(), "client-2"))

	k, err = keys.Rotate(dir, time.Now(), keys.Certificates)
	require.NoError(t, err)
	require.NoError(t, k.CheckExpiry(time.Now()))

	t.Run("CA", func(t *testing.T) {
		_, err := keys.Rotate(dir, time.Now().AddDate(11, 0, 0), keys.Certificates)
		require.ErrorContains(t, err, "the agents' CA has expired on")
	})
	t.Run("NotLongerThanTheCA", func(t *testing.T) {
		k, err := keys.Rotate(dir, time.Now().AddDate(8, 6, 0), keys.Certificates)
		require.NoError(t, err)
		all, err := k.Certificates()
		require.NoError(t, err)
		require.Equal(t, all[0].NotAfter, all[1].NotAfter)
	})
}

func TestRotate(t *testing.T) {
	t.Run("Certificates", func(t *testing.T) {
		dir := folder(t)
		_, err := keys.Ensure(dir, []keys.Node{{Name: "server-1", Role: keys.Server, Address: "10.0.0.11"}}, time.Now())
		require.NoError(t, err)
		before := contents(t, dir)
		k, err := keys.Rotate(dir, time.Now(), keys.Certificates)
		require.NoError(t, err)
		after := contents(t, dir)
		for path, text := range after {
			rotated := strings.HasPrefix(path, "nodes/") || strings.HasPrefix(path, "operator")
			if rotated {
				require.NotEqual(t, before[path], text, path)
			} else {
				require.Equal(t, before[path], text, path)
			}
		}
		all, err := k.Certificates()
		require.NoError(t, err)
		require.Equal(t, []string{"server-1", "localhost", keys.ConsulServerName, keys.NomadServerName, "127.0.0.1", "10.0.0.11"}, all[2].Names)
		_, err = k.OperatorTLS(keys.ConsulServerName)
		require.NoError(t, err)
	})
	t.Run("Gossip", func(t *testing.T) {
		old := made(t)
		k, err := keys.Rotate(old.Dir, time.Now(), keys.Gossip)
		require.NoError(t, err)
		require.NotEqual(t, old.Secrets.ConsulGossip, k.Secrets.ConsulGossip)
		require.NotEqual(t, old.Secrets.NomadGossip, k.Secrets.NomadGossip)
		require.Equal(t, old.Secrets.Nodes, k.Secrets.Nodes)
		require.Equal(t, &keys.Secrets{ConsulGossip: old.Secrets.ConsulGossip, NomadGossip: old.Secrets.NomadGossip}, k.Secrets.Before)

		before := contents(t, k.Dir)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Gossip)
		require.ErrorContains(t, err, "marquee keys apply", "the key that the cluster goes by would be lost")
		require.Equal(t, before, contents(t, k.Dir))
		require.NoError(t, k.SettleGossip())
		require.Nil(t, k.Secrets.Before)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Gossip)
		require.NoError(t, err)
	})
	t.Run("Tokens", func(t *testing.T) {
		old := made(t)
		k, err := keys.Rotate(old.Dir, time.Now(), keys.Gossip, keys.Tokens)
		require.NoError(t, err)
		require.NotEqual(t, old.Secrets.ConsulManagement, k.Secrets.ConsulManagement)
		require.NotEqual(t, old.Secrets.Nodes["client-1"], k.Secrets.Nodes["client-1"])
		require.Equal(t, old.Secrets.NomadManagement, k.Secrets.NomadManagement, "Nomad makes it")
		require.Equal(t, old.Secrets.Nodes, k.Secrets.Before.Nodes)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Tokens)
		require.ErrorContains(t, err, "marquee keys withdraw")
		require.NoError(t, k.SetNomadManagement("made-by-nomad"))
		require.NoError(t, k.SettleTokens())
		require.Equal(t, &keys.Secrets{ConsulGossip: old.Secrets.ConsulGossip, NomadGossip: old.Secrets.NomadGossip}, k.Secrets.Before)
		loaded, err := keys.Load(k.Dir)
		require.NoError(t, err)
		require.Equal(t, k.Secrets, loaded.Secrets)
		require.Equal(t, "made-by-nomad", loaded.Secrets.NomadManagement)
	})
	t.Run("SSH", func(t *testing.T) {
		old := made(t)
		before := contents(t, old.Dir)
		_, err := keys.Rotate(old.Dir, time.Now(), keys.SSH)
		require.NoError(t, err)
		after := contents(t, old.Dir)
		require.NotEqual(t, before["ssh"], after["ssh"])
		require.NotEqual(t, before["ssh.pub"], after["ssh.pub"])
		require.Equal(t, before["secrets.json"], after["secrets.json"])
	})
	t.Run("ErrKind", func(t *testing.T) {
		k := made(t)
		_, err := keys.Rotate(k.Dir, time.Now(), "passwords")
		require.ErrorContains(t, err, `"passwords"`)
		_, err = keys.Rotate(k.Dir, time.Now())
		require.ErrorContains(t, err, "rotate what?")
		_, err = keys.Rotate(folder(t), time.Now(), keys.Gossip)
		require.ErrorIs(t, err, keys.ErrMissing)
	})
}

func TestBadNodes(t *testing.T) {
	for name, test := range map[string]struct {
		nodes []keys.Node
		says  string
	}{
		"Empty":     {[]keys.Node{{Name: "", Role: keys.Server}}, `"" is no name`},
		"Path":      {[]keys.Node{{Name: "../ca", Role: keys.Server}}, `"../ca" is no name`},
		"UpperCase": {[]keys.Node{{Name: "Server", Role: keys.Server}}, `"Server" is no name`},
		"Long":      {[]keys.Node{{Name: strings.Repeat("a", 64), Role: keys.Server}}, "at most 63"},
		"Operator":  {[]keys.Node{{Name: "operator", Role: keys.Client}}, "means something else"},
		"Localhost": {[]keys.Node{{Name: "localhost", Role: keys.Client}}, "means something else"},
		"Role":      {[]keys.Node{{Name: "a", Role: "edge"}}, `the role of a is "edge": want server or client`},
		"Twice":     {[]keys.Node{{Name: "a", Role: keys.Client}, {Name: "a", Role: keys.Server}}, "two machines are called a"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			_, err := keys.Ensure(dir, test.nodes, time.Now())
			require.ErrorContains(t, err, test.says)
			require.NoDirExists(t, dir, "something was made")
		})
	}
}

// What is damaged or missing is named, with what to do; and what an interrupted
// run left is finished.
func TestDamaged(t *testing.T) {
	again := func(k *keys.Keys) error {
		_, err := keys.Ensure(k.Dir, keys.Nodes(1, 1), time.Now())
		return err
	}
	path := func(k *keys.Keys, name string) string { return filepath.Join(k.Dir, name) }

	t.Run("NotThere", func(t *testing.T) {
		_, err := keys.Load(folder(t))
		require.ErrorIs(t, err, keys.ErrMissing)
		require.ErrorContains(t, err, "marquee keys new")
		_, err = made(t).Node("client-9")
		require.ErrorIs(t, err, keys.ErrMissing)
	})
	t.Run("ReadableByOthers", func(t *testing.T) {
		k := made(t)
		for _, name := range []string{"secrets.json", "nodes/client-1-key.pem"} {
			require.NoError(t, os.Chmod(path(k, name), 0o644))
			require.ErrorContains(t, again(k), "chmod 600 "+path(k, name))
			require.NoError(t, os.Chmod(path(k, name), 0o600))
		}
		require.NoError(t, again(k))
	})
	t.Run("InterruptedAfterAKey", func(t *testing.T) {
		k := made(t)
		require.NoError(t, os.Remove(path(k, "nodes/client-1.pem")))
		require.NoError(t, os.Remove(path(k, "ssh.pub")))
		require.NoError(t, os.WriteFile(path(k, "secrets.json.new"), []byte("{"), 0o600))
		require.NoError(t, again(k))
		node, err := k.Node("client-1")
		require.NoError(t, err)
		_, err = tls.X509KeyPair(node.Certificate, node.Key)
		require.NoError(t, err)
	})
	t.Run("NoKeyToACertificate", func(t *testing.T) {
		k := made(t)
		require.NoError(t, os.Remove(path(k, "nodes/client-1-key.pem")))
		require.ErrorContains(t, again(k), "its key is not")
		require.NoError(t, os.Remove(path(k, "nodes/client-1.pem")))
		require.NoError(t, again(k))
	})
	t.Run("NoCAKey", func(t *testing.T) {
		k := made(t)
		require.NoError(t, os.Remove(path(k, "ca-key.pem")))
		require.ErrorContains(t, again(k), "ca-key.pem is missing: bring it back")
		_, err := keys.Load(k.Dir)
		require.NoError(t, err, "the operator works without it")
	})
	t.Run("NoCA", func(t *testing.T) {
		k := made(t)
		require.NoError(t, os.Remove(path(k, "ca.pem")))
		require.ErrorContains(t, again(k), "ca.pem is missing where there are other keys")
	})
	t.Run("AnotherCA", func(t *testing.T) {
		k, other := made(t), made(t)
		for _, name := range []string{"ca.pem", "ca-key.pem"} {
			text, err := os.ReadFile(path(other, name))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path(k, name), text, 0o600))
			if name == "ca.pem" {
				require.ErrorContains(t, again(k), "do not belong together")
			}
		}
		require.ErrorContains(t, again(k), "was not signed by this environment's CA")
	})
	t.Run("NoCertificate", func(t *testing.T) {
		k := made(t)
		require.NoError(t, os.WriteFile(path(k, "operator.pem"), []byte("hello"), 0o644))
		require.ErrorContains(t, again(k), path(k, "operator.pem")+" is no certificate: remove it")
	})
	t.Run("AnotherRole", func(t *testing.T) {
		k := made(t)
		_, err := keys.Ensure(k.Dir, []keys.Node{{Name: "client-1", Role: keys.Server}}, time.Now())
		require.ErrorContains(t, err, "another role")
	})
	t.Run("Secrets", func(t *testing.T) {
		k := made(t)
		require.NoError(t, os.WriteFile(path(k, "secrets.json"), []byte("{"), 0o600))
		_, err := keys.Load(k.Dir)
		require.ErrorContains(t, err, "secrets.json")
		require.ErrorContains(t, again(k), "secrets.json")
		require.NoError(t, os.WriteFile(path(k, "secrets.json"), []byte("{}"), 0o600))
		_, err = keys.Load(k.Dir)
		require.ErrorContains(t, err, "marquee keys new adds it")
		require.NoError(t, again(k))
	})
}
