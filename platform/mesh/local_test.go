package mesh_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

func TestSidecar(t *testing.T) {
	env := map[string]string{}
	m, err := mesh.Sidecar(mesh.SidecarConfig{LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Ready(deadline(t, time.Second)))
	env["NOMAD_UPSTREAM_ADDR_echo"] = serve(t, m, &echo{})
	env["NOMAD_UPSTREAM_ADDR_account_db"] = mirrored(t, m).address
	env["NOMAD_UPSTREAM_ADDR_far"] = "192.0.2.1:80"
	env["NOMAD_UPSTREAM_ADDR_named"] = "localhost:80"

	c := client(t, m, "echo")
	require.Equal(t, codes.OK, call(t, c))
	_, err = c.Whoami(deadline(t, 5*time.Second), &echov1.WhoamiRequest{})
	require.Equal(t, codes.Internal, status.Code(err), "no peer is known behind a sidecar")
	conn, err := m.DialContext(deadline(t, 5*time.Second), "account-db")
	require.NoError(t, err)
	require.NoError(t, exchange(conn))
	require.NoError(t, conn.Close())

	for service, text := range map[string]string{
		"order": "NOMAD_UPSTREAM_ADDR_order is not set",
		"far":   "not a loopback address",
		"named": "not a loopback address",
	} {
		_, err := m.NewClient(service)
		require.ErrorContains(t, err, text)
		_, err = m.DialContext(deadline(t, time.Second), service)
		require.ErrorContains(t, err, text)
		f, ok := fault.From(err)
		require.True(t, ok)
		require.Equal(t, mesh.ReasonUnreachable, f.Reason)
	}
}

func TestPlaintext(t *testing.T) {
	where := newPlaces()
	base, err := mesh.Plaintext(mesh.PlaintextConfig{})
	require.NoError(t, err)
	defer base.Close()
	first, second := serve(t, base, &echo{}), serve(t, base, &echo{})
	database := mirrored(t, base)
	where.set("account-db", database.address)

	m, err := mesh.Plaintext(mesh.PlaintextConfig{
		Addresses: map[string][]string{"echo": {first, second}},
		Watcher:   where, Environment: "test", Resolver: resolverTo(first),
	})
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, codes.OK, call(t, client(t, m, "echo")))
	require.Equal(t, codes.OK, call(t, client(t, m, "resolved")))
	conn, err := m.DialContext(deadline(t, 5*time.Second), "account-db")
	require.NoError(t, err)
	require.NoError(t, exchange(conn))
	require.NoError(t, conn.Close())

	_, err = base.NewClient("echo")
	require.ErrorContains(t, err, "no address in PlaintextConfig")
	_, err = mesh.Plaintext(mesh.PlaintextConfig{Addresses: map[string][]string{"echo": {"192.0.2.1:80"}}})
	require.ErrorContains(t, err, "not a loopback address")
}

// TestPlaintextRefusesOtherMachines serves on this machine's own address that
// others could reach, and dials it.
func TestPlaintextRefusesOtherMachines(t *testing.T) {
	address := outwardAddress(t)
	m, err := mesh.Plaintext(mesh.PlaintextConfig{Resolver: resolverTo(address)})
	require.NoError(t, err)
	defer m.Close()
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	secured := m.Listener(listener)
	accepted := make(chan error, 1)
	go func() {
		_, err := secured.Accept()
		accepted <- err
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer raw.Close()
	require.NoError(t, raw.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = raw.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, secured.Close())
	require.ErrorIs(t, <-accepted, net.ErrClosed)

	far, err := mesh.Plaintext(mesh.PlaintextConfig{Resolver: resolverTo(listener.Addr().String())})
	require.NoError(t, err)
	defer far.Close()
	open, err := net.Listen("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer open.Close()
	_, err = client(t, far, "echo").Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{})
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "refused plaintext")
}

func outwardAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return net.JoinHostPort(ip.IP.String(), "0")
		}
	}
	t.Skip("this machine has no address besides loopback")
	return ""
}
