package mesh_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/tools"
)

// TestEnvoy: the two modes in one mesh. echo has an Envoy beside it; the native
// gateway calls it through that Envoy, and echo reaches the native account-db
// through the same one.
func TestEnvoy(t *testing.T) {
	envoy, err := tools.Find(context.Background(), tools.Envoy)
	if errors.Is(err, tools.ErrMissing) {
		t.Skipf("no Envoy: %v", err)
	}
	require.NoError(t, err)
	agent := consultest.Start(t)
	consul := agent.Client
	// Envoy offers TLS 1.2 alone to upstreams unless it is told otherwise.
	_, _, err = consul.ConfigEntries().Set(&consulapi.MeshConfigEntry{TLS: &consulapi.MeshTLSConfig{
		Outgoing: &consulapi.MeshDirectionalTLSConfig{TLSMinVersion: "TLSv1_3", TLSMaxVersion: "TLSv1_3"},
	}}, nil)
	require.NoError(t, err)
	_, _, err = consul.ConfigEntries().Set(&consulapi.ServiceConfigEntry{Kind: consulapi.ServiceDefaults, Name: "echo", Protocol: "grpc"}, nil)
	require.NoError(t, err)
	intend(t, consul, "echo", source("gateway", allow))
	intend(t, consul, "account-db", source("echo", allow))

	database := mirrored(t, join(t, consul, "account-db", nil))
	require.NoError(t, consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{
		Name: "account-db", Address: "127.0.0.1", Port: portOf(t, database.address),
		Connect: &consulapi.AgentServiceConnect{Native: true},
	}))
	upstream, public := closedAddress(t), closedAddress(t)
	sidecar, err := mesh.Sidecar(mesh.SidecarConfig{LookupEnv: func(name string) (string, bool) {
		return upstream, name == "NOMAD_UPSTREAM_ADDR_account_db"
	}})
	require.NoError(t, err)
	defer sidecar.Close()
	require.NoError(t, consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{
		Name: "echo", Address: "127.0.0.1", Port: portOf(t, serve(t, sidecar, &echo{})),
		Connect: &consulapi.AgentServiceConnect{SidecarService: &consulapi.AgentServiceRegistration{
			Address: "127.0.0.1", Port: portOf(t, public),
			Proxy: &consulapi.AgentServiceConnectProxyConfig{
				LocalServiceAddress: "127.0.0.1",
				Upstreams:           []consulapi.Upstream{{DestinationName: "account-db", LocalBindPort: portOf(t, upstream)}},
			},
		}},
	}))
	runEnvoy(t, agent, envoy)

	gateway := join(t, consul, "gateway", func(c *mesh.NativeConfig) { c.Resolver = resolverTo(public) })
	c := client(t, gateway, "echo")
	require.Eventually(t, func() bool { return call(t, c) == codes.OK }, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, codes.OK, call(t, c))

	// Envoy accepts before it knows where account-db is.
	require.Eventually(t, func() bool {
		conn, err := sidecar.DialContext(deadline(t, 2*time.Second), "account-db")
		if err != nil {
			return false
		}
		defer conn.Close()
		return exchange(conn) == nil
	}, 30*time.Second, 50*time.Millisecond)
	require.Contains(t, database.seen(), "echo")

	intend(t, consul, "account-db", source("echo", deny))
	require.Eventually(t, func() bool {
		conn, err := sidecar.DialContext(deadline(t, 2*time.Second), "account-db")
		if err != nil {
			return true
		}
		defer conn.Close()
		return exchange(conn) != nil
	}, 5*time.Second, 10*time.Millisecond)
}

// runEnvoy runs echo's sidecar until the test ends.
func runEnvoy(t *testing.T, agent *consultest.Agent, envoy string) {
	t.Helper()
	consul, err := tools.Find(context.Background(), tools.Consul)
	require.NoError(t, err)
	bootstrap := exec.Command(consul, "connect", "envoy", "-sidecar-for=echo", "-bootstrap", "-ignore-envoy-compatibility=true",
		"-http-addr="+agent.Address, "-grpc-addr="+agent.GRPCAddress, "-admin-bind="+closedAddress(t))
	bootstrap.Env = []string{"PATH=" + filepath.Dir(envoy) + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	config, err := bootstrap.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("make Envoy's configuration: %s", exit.Stderr)
	}
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "envoy.json")
	require.NoError(t, os.WriteFile(path, config, 0o600))

	cmd := exec.Command(envoy, "-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
	log, err := os.Create(filepath.Join(t.TempDir(), "envoy.log"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("Envoy's log:\n%s", text)
		}
		log.Close()
	})
}

func portOf(t testing.TB, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	return port
}
