package cluster

import (
	"bytes"
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/jobs"
)

const (
	// marketVariable has people buy air time from the first scenario to the last, each
	// about once a second; empty has not. On two processors what they do takes time that
	// replacing a machine's instances within its bound needs.
	marketVariable = "MARQUEE_E2E_MARKET"
	people         = 3
)

// openMarket lets them buy, through the doors of all clients, of which they are told
// nothing afterwards.
func (c *cluster) openMarket(t *testing.T, ctx context.Context) {
	t.Helper()
	c.market = scenario.NewMarket(ctx, t, c.doors(t, c.clients()...), scenario.MarketConfig{Displays: 2, Slots: 5, Buyers: people, Pace: time.Second})
	c.market.Open(ctx, people, math.MaxInt64, uint64(time.Now().UnixNano())) //nolint:gosec // not negative
	t.Cleanup(c.market.Close)
}

// closeMarket requires that what all were told is what is, and has the order service
// prove that the money adds up and that devices know what is sold, as
// docs/operations.md has it.
func (c *cluster) closeMarket(t *testing.T, ctx context.Context) {
	t.Helper()
	c.market.Close()
	c.market.Check(ctx, t)
	found, err := c.instances(ctx, "order")
	require.NoError(t, err)
	require.NotEmpty(t, found)
	for command, well := range map[string]string{"--check-ledger": "fit together", "--check-playlists": "and no others"} {
		var said bytes.Buffer
		code, err := c.Jobs().Exec(ctx, strings.TrimPrefix(found[0].id, "order-"), jobs.ExecOptions{
			Command: []string{"local/orderd", "--config", "local/config.json", command}, Stdout: &said, Stderr: &said,
		})
		require.NoError(t, err, "%s", &said)
		require.Zero(t, code, "%s", &said)
		require.Contains(t, said.String(), well)
	}
}
