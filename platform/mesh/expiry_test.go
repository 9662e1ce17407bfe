package mesh

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
)

// TestExpiry: a certificate that the agent does not renew works until its end,
// with a warning before it and an error after it, and then Ready says so.
func TestExpiry(t *testing.T) {
	ours := newAuthority(t)
	now := time.Now()
	var log strings.Builder
	n := &native{
		cfg: NativeConfig{Service: "account", Now: func() time.Time { return now }},
		log: hclog.New(&hclog.LoggerOptions{Output: &log}),
	}
	n.certs.now = n.cfg.Now
	own := ours.leaf("account", nil)
	n.certs.leaf.Store(own)
	n.certs.trust.Store(ours.trust())
	p, err := newPolicy(nil)
	require.NoError(t, err)
	n.policy.Store(p)

	n.checkExpiry()
	require.Empty(t, log.String())
	require.NoError(t, n.Ready(context.Background()))

	now = own.notAfter.Add(-time.Minute)
	n.checkExpiry()
	require.Contains(t, log.String(), "[WARN]  our certificate expires soon")
	require.NoError(t, n.Ready(context.Background()))
	_, err = n.certs.own()
	require.NoError(t, err)

	now = own.notAfter.Add(time.Second)
	n.checkExpiry()
	require.Contains(t, log.String(), "[ERROR] our certificate has expired")
	_, err = n.certs.own()
	require.ErrorContains(t, err, "our certificate expired")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorContains(t, n.Ready(ctx), "the certificate has expired")
}
