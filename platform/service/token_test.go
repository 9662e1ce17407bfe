package service_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/service"
)

// An allocation without a token fails, where one is needed, instead of waiting for
// good: Nomad then places it again, with one.
func TestNoToken(t *testing.T) {
	for name, c := range map[string]struct {
		options []consultest.Option
		token   string
		fails   bool
	}{
		"ErrNone":    {[]consultest.Option{consultest.WithACL()}, "", true},
		"OK":         {[]consultest.Option{consultest.WithACL()}, consultest.ManagementToken, false},
		"NoneNeeded": {nil, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			agent := consultest.Start(t, c.options...)
			t.Setenv("NOMAD_ALLOC_ID", "5a3c9f0e-0000-4000-8000-000000000000")
			t.Setenv("CONSUL_HTTP_TOKEN", c.token)
			cfg := plaintext()
			cfg.Name, cfg.Mesh, cfg.ConsulAddr = "echo", service.MeshNative, agent.Address
			svc, err := service.New(t.Context(), cfg)
			require.NoError(t, err)
			t.Cleanup(svc.Close)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if c.fails {
				require.ErrorContains(t, svc.Serve(ctx), "Nomad has given this task none")
				require.NoError(t, ctx.Err(), "it ends by itself")
				return
			}
			served := make(chan error, 1)
			go func() { served <- svc.Serve(ctx) }()
			require.Eventually(t, func() bool { return svc.Mesh().Ready(ctx) == nil }, 15*time.Second, 50*time.Millisecond)
			cancel()
			require.NoError(t, <-served)
		})
	}
}
