// Package scenario has what the scenarios of several packages share: load
// through all gateways, waiting for conditions, and what is written down.
package scenario

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/marquee-ads/marquee/e2e/load"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// NeedRoot skips a test in namespaces where it cannot run: it needs root, and
// programs that only the machine's owner can add, each with how.
func NeedRoot(t testing.TB, programs map[string]string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("this needs namespaces, which need root: run it as root")
	}
	for program, get := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("this needs %s: %v: %s", program, err, get)
		}
	}
}

// Eventually waits for a condition, asking every 20 ms, and fails the test with
// what it last said when the limit passes, also when the condition comes to hold
// after it. It returns how long it took.
func Eventually(ctx context.Context, t testing.TB, limit time.Duration, what string, condition func() error) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		took := time.Since(began)
		if err == nil {
			require.LessOrEqual(t, took, limit, "it took too long until %s", what)
			return took
		}
		select {
		case <-ctx.Done():
			require.FailNow(t, "waited in vain until "+what, "%v after %s", err, took)
		case <-tick.C:
		}
	}
}

// AtLeast waits until a load has made so many calls in all.
func AtLeast(ctx context.Context, t testing.TB, r *load.Running, calls int) {
	t.Helper()
	Eventually(ctx, t, time.Minute, fmt.Sprintf("%d calls were made", calls), func() error {
		if n, _ := r.Snapshot(); n < calls {
			return fmt.Errorf("%d were", n)
		}
		return nil
	})
}

// More waits until a load has made so many calls more.
func More(ctx context.Context, t testing.TB, r *load.Running, calls int) {
	t.Helper()
	made, _ := r.Snapshot()
	AtLeast(ctx, t, r, made+calls)
}

// Knock calls a business method of account on one address, with whatever
// credentials an outsider may have.
func Knock(ctx context.Context, address string, creds credentials.TransportCredentials) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err = accountv1.NewAccountServiceClient(conn).GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
	return err
}
