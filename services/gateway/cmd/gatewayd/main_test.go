package main

import (
	"context"
	"crypto/ed25519"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// noKeys accepts no token.
type noKeys struct{}

func (noKeys) PublicKey(string) (ed25519.PublicKey, bool) { return nil, false }
func (noKeys) SessionEnded(string) bool                   { return false }
func (noKeys) RolesVersion(string) int64                  { return 0 }

type echo struct {
	echov1.UnimplementedEchoServiceServer
}

func (echo) Echo(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	return &echov1.EchoResponse{Text: r.GetText()}, nil
}

// TestThroughTheMesh is the whole way with nothing but the agent to bring the
// parts together: an instance of a service registers, the gateway finds it,
// learns its routes, and calls it with mutual TLS; then both leave in order.
func TestThroughTheMesh(t *testing.T) {
	agent := consultest.Start(t)
	_, _, err := agent.Client.ConfigEntries().Set(&consul.ServiceIntentionsConfigEntry{
		Kind: consul.ServiceIntentions, Name: "echo",
		Sources: []*consul.SourceIntention{{Name: "gateway", Action: consul.IntentionActionAllow}},
	}, nil)
	require.NoError(t, err)

	cfg, err := service.Parse[config]("gateway", []string{
		"--mode=test", "--consul-addr=" + agent.Address, "--register=always", "--drain-delay=0s",
		"--http-listen=" + free(t), "--grpc-listen=" + free(t),
	}, io.Discard)
	require.NoError(t, err)

	echoCfg := cfg.Config
	echoCfg.Name = "echo"
	start(t, func(ctx context.Context) error {
		svc, err := service.New(ctx, echoCfg)
		if err != nil {
			return err
		}
		defer svc.Close()
		echov1.RegisterEchoServiceServer(svc.NewGRPCServer(service.GRPCOptions{Keys: noKeys{}}), echo{})
		return svc.Serve(ctx)
	})
	start(t, func(ctx context.Context) error { return run(ctx, cfg) })

	url := "http://" + cfg.Gateway.HTTPListen
	status := func(path string) int {
		response, err := http.Get(url + path)
		if err != nil {
			return 0
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	require.Eventually(t, func() bool { return status("/v1/echo/hello") == http.StatusOK }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, http.StatusUnauthorized, status("/v1/whoami"))
	require.Eventually(t, func() bool {
		instances, _, err := agent.Client.Health().Service("gateway", "env-development", true, nil)
		return err == nil && len(instances) == 1
	}, 10*time.Second, 20*time.Millisecond, "the gateway is not registered, or not ready")
}

// start runs a process's run function for the length of the test.
func start(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Error("it did not stop")
		}
	})
}

// free is an address that was free a moment ago.
func free(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

func TestConfigurationErrorsNameTheFlag(t *testing.T) {
	for flag, args := range map[string][]string{
		"--http-listen":       {"--http-listen=8080"},
		"--listen":            {"--listen=127.0.0.1:8080"},
		"--tls-cert-file":     {"--tls-cert-file=cert.pem"},
		"--max-body-bytes":    {"--max-body-bytes=0"},
		"--max-connections":   {"--max-connections=-1"},
		"--max-message-bytes": {"--max-message-bytes=12"},
		"--default-timeout":   {"--default-timeout=2h"},
		"--access-log":        {"--access-log=some"},
	} {
		t.Run(flag, func(t *testing.T) {
			_, err := service.Parse[config]("gateway", args, io.Discard)
			require.ErrorContains(t, err, flag)
		})
	}
}

func TestProductionRefusesPlaintextDoors(t *testing.T) {
	parse := func(more ...string) error {
		args := append([]string{"--mode=production", "--environment=production-eu", "--grpc-listen=127.0.0.1:0", "--http-listen=0.0.0.0:0"}, more...)
		_, err := service.Parse[config]("gateway", args, io.Discard)
		return err
	}
	require.ErrorContains(t, parse(), "--http-listen: 0.0.0.0:0 is not on loopback and unencrypted")
	require.NoError(t, parse("--behind-tls"))
}

// A gateway on all addresses tells others where it is, at both doors.
func TestAdvertisesBothDoors(t *testing.T) {
	agent := consultest.Start(t)
	cfg, err := service.Parse[config]("gateway", []string{
		"--mode=test", "--consul-addr=" + agent.Address, "--register=always", "--drain-delay=0s",
		"--http-listen=0.0.0.0:0", "--grpc-listen=0.0.0.0:0", "--advertise=127.0.0.7",
	}, io.Discard)
	require.NoError(t, err)
	start(t, func(ctx context.Context) error { return run(ctx, cfg) })
	var found []*consul.ServiceEntry
	require.Eventually(t, func() bool {
		var err error
		found, _, err = agent.Client.Health().Service("gateway", "", true, nil)
		return err == nil && len(found) == 1
	}, 10*time.Second, 20*time.Millisecond)
	require.Equal(t, "127.0.0.7", found[0].Service.Address)
	host, port, err := net.SplitHostPort(found[0].Service.Meta["grpc"])
	require.NoError(t, err)
	require.Equal(t, "127.0.0.7", host)
	require.NotEqual(t, "0", port)
}
