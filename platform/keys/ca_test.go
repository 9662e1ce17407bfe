package keys_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/keys"
)

// files are what one machine, or the operator, has of the keys at some time.
type files struct {
	ca, certificate, key []byte
}

func filesOf(t *testing.T, k *keys.Keys, name string) files {
	t.Helper()
	own, err := k.Node(name)
	require.NoError(t, err)
	return files{k.CA, own.Certificate, own.Key}
}

// call is a connection with certificates on both sides, as the agents make them.
func call(t *testing.T, client, server files) error {
	t.Helper()
	config := func(f files) *tls.Config {
		pair, err := tls.X509KeyPair(f.certificate, f.key)
		require.NoError(t, err)
		pool := x509.NewCertPool()
		require.True(t, pool.AppendCertsFromPEM(f.ca))
		return &tls.Config{
			Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
			ServerName: keys.ConsulServerName, MinVersion: tls.VersionTLS12,
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	require.NoError(t, a.SetDeadline(time.Now().Add(10*time.Second)))
	served := make(chan error, 1)
	go func() {
		conn := tls.Server(b, config(server))
		err := conn.HandshakeContext(t.Context())
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- err
		b.Close()
	}()
	conn := tls.Client(a, config(client))
	err := conn.HandshakeContext(t.Context())
	if err == nil {
		// What the server thinks of the certificate is told after the handshake.
		_, err = conn.Read(make([]byte, 1))
	}
	a.Close()
	if serverErr := <-served; err == nil {
		err = serverErr
	}
	return err
}

// The CA is rotated while machines run: in each step some have their new files
// and some have not, and all of them talk to each other.
func TestRotateCA(t *testing.T) {
	first := made(t)
	dir := first.Dir
	step := func(k *keys.Keys, err error) [2]files {
		t.Helper()
		require.NoError(t, err)
		return [2]files{filesOf(t, k, "server-1"), filesOf(t, k, "client-1")}
	}
	pending := func(want string) {
		t.Helper()
		k, err := keys.Load(dir)
		require.NoError(t, err)
		left, err := k.PendingCA()
		require.NoError(t, err)
		require.Equal(t, want == "", left == "", left)
		require.Contains(t, left, want)
	}
	pending("")
	_, err := keys.Rotate(dir, time.Now(), keys.CA, keys.Certificates)
	require.ErrorContains(t, err, "when all machines have got the new ca.pem")
	steps := [][2]files{step(first, nil), step(keys.Rotate(dir, time.Now(), keys.CA))}
	pending("marquee keys rotate certificates")
	require.Equal(t, steps[0][0].certificate, steps[1][0].certificate, "the old CA's certificates stay")

	// A machine that is made meanwhile is trusted by those that know the old CA alone.
	more, err := keys.Ensure(dir, keys.Nodes(1, 2), time.Now())
	require.NoError(t, err)
	require.NoError(t, call(t, filesOf(t, more, "client-2"), steps[0][0]))
	for _, refused := range []func() error{
		func() error { _, err := keys.Rotate(dir, time.Now(), keys.CA); return err },
		func() error { _, err := keys.WithdrawCA(dir); return err },
	} {
		before := contents(t, dir)
		require.ErrorContains(t, refused(), "marquee keys rotate certificates")
		require.Equal(t, before, contents(t, dir))
	}

	steps = append(steps, step(keys.Rotate(dir, time.Now(), keys.Certificates)))
	pending("marquee keys withdraw ca")
	_, err = keys.Rotate(dir, time.Now(), keys.CA)
	require.ErrorContains(t, err, "marquee keys withdraw ca")
	steps = append(steps, step(keys.WithdrawCA(dir)))
	pending("")
	require.NoFileExists(t, filepath.Join(dir, "ca-next-key.pem"))
	for i, one := range steps {
		for j, other := range steps {
			err := call(t, one[1], other[0])
			if i-j <= 1 && j-i <= 1 {
				require.NoError(t, err, "a client in step %d calls a server in step %d", i, j)
			} else if i+j == 3 && i*j == 0 {
				require.Error(t, err, "steps %d and %d have nothing in common", i, j)
			}
		}
	}
	operator, err := keys.Load(dir)
	require.NoError(t, err)
	_, err = operator.OperatorTLS(keys.ConsulServerName)
	require.NoError(t, err)

	t.Run("AgainAndAgain", func(t *testing.T) {
		_, err := keys.WithdrawCA(dir)
		require.NoError(t, err, "there is nothing to withdraw")
		again := step(keys.Rotate(dir, time.Now(), keys.CA))
		require.NoError(t, call(t, again[1], steps[3][0]))
		require.NotEqual(t, steps[3][0].ca, again[0].ca)
	})
}

// What an interrupted rotation left is finished by the next.
func TestRotateCAInterrupted(t *testing.T) {
	t.Run("AfterTheNextKey", func(t *testing.T) {
		k := made(t)
		before, err := os.ReadFile(k.CAFile())
		require.NoError(t, err)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.CA)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(k.CAFile(), before, 0o600))
		left, err := k.PendingCA()
		require.NoError(t, err)
		require.Empty(t, left)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Certificates)
		require.NoError(t, err, "the next CA is trusted by nobody: the old one signs")
		require.NoError(t, call(t, filesOf(t, k, "client-1"), filesOf(t, k, "server-1")))
		_, err = keys.Rotate(k.Dir, time.Now(), keys.CA)
		require.NoError(t, err)
	})
	t.Run("BetweenCertificates", func(t *testing.T) {
		k := made(t)
		old, err := os.ReadFile(filepath.Join(k.Dir, "nodes", "server-1.pem"))
		require.NoError(t, err)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.CA)
		require.NoError(t, err)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Certificates)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(k.Dir, "nodes", "server-1.pem"), old, 0o600))
		_, err = keys.WithdrawCA(k.Dir)
		require.ErrorContains(t, err, "the certificate of server-1 is still the old CA's")
		_, err = keys.Ensure(k.Dir, keys.Nodes(1, 1), time.Now())
		require.NoError(t, err, "it is trusted as long as the old CA is")
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Certificates)
		require.NoError(t, err)
		_, err = keys.WithdrawCA(k.Dir)
		require.NoError(t, err)
	})
	t.Run("TheNextKeyCanBeReadByOthers", func(t *testing.T) {
		k := made(t)
		_, err := keys.Rotate(k.Dir, time.Now(), keys.CA)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(filepath.Join(k.Dir, "ca-next-key.pem"), 0o644))
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Certificates)
		require.ErrorContains(t, err, "chmod 600")
	})
	t.Run("TheOldOneHasExpired", func(t *testing.T) {
		k, err := keys.Ensure(folder(t), keys.Nodes(1, 1), time.Now().AddDate(-11, 0, 0))
		require.NoError(t, err)
		require.ErrorContains(t, k.CheckExpiry(time.Now(), "ca"), "marquee keys rotate ca")
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Certificates)
		require.ErrorContains(t, err, "marquee keys rotate ca")
		_, err = keys.Rotate(k.Dir, time.Now(), keys.CA)
		require.NoError(t, err)
		_, err = keys.Rotate(k.Dir, time.Now(), keys.Certificates)
		require.NoError(t, err)
		k, err = keys.WithdrawCA(k.Dir)
		require.NoError(t, err)
		require.NoError(t, k.CheckExpiry(time.Now()))
	})
}
