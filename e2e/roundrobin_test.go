package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// Three instances share 3,000 calls evenly.
func TestRoundRobin(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	const calls, count, gateways = 3000, 3, 2

	t.Run("ThroughTheGateways", func(t *testing.T) {
		reads := openDoors(t, ctx).Accounts().KeyReads()
		report := load.Start(ctx, load.Plan{Rate: 600, Calls: calls, Timeout: 5 * time.Second, Ops: reads}).Wait()
		t.Log(report)
		require.Empty(t, report.Failed)
		require.Len(t, report.ByInstance, count)
		for id, n := range report.ByInstance {
			require.InDelta(t, calls/count, n, gateways, "calls answered by %s", id)
		}
	})

	t.Run("DirectlyWithTheResolver", func(t *testing.T) {
		conn, err := as(t, "gateway").NewClient("account")
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		account := accountv1.NewAccountServiceClient(conn)
		call := func() string {
			var header metadata.MD
			_, err := account.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{}, grpc.Header(&header), grpc.WaitForReady(true))
			require.NoError(t, err)
			require.Len(t, header.Get(load.ServedBy), 1)
			return header.Get(load.ServedBy)[0]
		}
		// The count is exact once all connections stand.
		seen := map[string]bool{}
		scenario.Eventually(ctx, t, 20*time.Second, "all instances answer", func() error {
			seen[call()] = true
			if len(seen) < count {
				return errNotYet
			}
			return nil
		})
		byInstance := map[string]int{}
		for range calls {
			byInstance[call()]++
		}
		t.Log(byInstance)
		for id, n := range byInstance {
			require.Equal(t, calls/count, n, "calls answered by %s", id)
		}
	})
}
