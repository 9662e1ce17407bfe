package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/discovery"
)

// Instances of another environment in the same registry are never dialled: not
// a real one, and not something that only listens and counts who comes.
func TestEnvironments(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	d := openDoors(t, ctx)
	const other = "staging"
	ours, err := instances(ctx, "echo")
	require.NoError(t, err)
	plan := load.Plan{Rate: 200, Timeout: 10 * time.Second, Ops: append(d.Accounts().KeyReads(), load.Op{
		Name: "REST Echo", Call: func(ctx context.Context) (string, error) {
			return d.REST.Do(ctx, load.Request{Method: "GET", Path: "/v1/echo/x", Idempotent: true}, nil)
		},
	})}
	running := load.Start(ctx, plan)
	scenario.AtLeast(ctx, t, running, 200)

	// A real one: it is healthy, of the same name, and the mesh would let it serve.
	byHand(t, ctx, "echo", "echod", "--environment="+other)
	scenario.Eventually(ctx, t, 30*time.Second, "an instance of the other environment is healthy", func() error {
		return healthyOf(ctx, "echo", other, 1)
	})
	strangers, _, err := the.Cluster().Consul().Health().Service("echo", discovery.EnvironmentTag(other), true, nil)
	require.NoError(t, err)
	require.Len(t, strangers, 1)
	stranger := strangers[0].Service
	// One that only looks like a database: whoever knocks is counted.
	database := listenAs(t, ctx, "account-db", other)

	// Whoever has to connect anew, or to look again, does not go there either:
	// the gateways, of which one dies and both lose an instance of echo, and
	// account, which loses the way to its database.
	dead := kill(t, "gatewayd", 1)
	kill(t, "echod", 1)
	kill(t, "meshproxyd", 1)
	scenario.Eventually(ctx, t, time.Minute, "our own are healthy again", func() error {
		return errors.Join(healthyOf(ctx, "echo", environment, len(ours)), healthyOf(ctx, "account-db", environment, 1))
	})
	recovery(t, ctx, "gateway", "gatewayd", 2, dead)
	scenario.More(ctx, t, running, 600)

	report := running.Stop()
	t.Log(summary(report))
	for _, f := range report.Failed { // for a moment account has no database
		require.Contains(t, f.Op, "GetSigningKeys", "%v", f.Err)
		require.NoError(t, toldToTryAgain(f.Err))
	}
	require.NotContains(t, report.ByInstance, stranger.ID, "an instance of another environment has answered")
	require.Empty(t, connectionsTo(t, stranger.Port), "somebody is connected to an instance of another environment")
	require.Zero(t, database.visits.Load(), "somebody dialled a database of another environment")
	// The count does count.
	conn, err := net.Dial("tcp", database.address)
	require.NoError(t, err)
	conn.Close()
	scenario.Eventually(ctx, t, 5*time.Second, "the visit was counted", func() error {
		if database.visits.Load() != 1 {
			return errNotYet
		}
		return nil
	})
}

// healthyOf returns nil when a service has n healthy instances in an environment.
func healthyOf(ctx context.Context, service, environment string, n int) error {
	entries, _, err := the.Cluster().Consul().Health().Service(service, discovery.EnvironmentTag(environment), true, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err == nil && len(entries) != n {
		err = fmt.Errorf("%s has %d healthy instances in %s", service, len(entries), environment)
	}
	return err
}

// listening is something that counts its visitors.
type listening struct {
	address string
	visits  atomic.Int64
}

// listenAs registers a listener as a healthy instance of a service, which closes
// every connection and counts them.
func listenAs(t *testing.T, ctx context.Context, service, environment string) *listening {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := &listening{address: listener.Addr().String()}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			l.visits.Add(1)
			conn.Close()
		}
	})
	registered, err := discovery.Register(ctx, the.Cluster().Consul(), discovery.Registration{
		Service: service, Address: l.address, Environment: environment, ConnectNative: true,
		ID: service + "-" + environment + "-" + strconv.Itoa(listener.Addr().(*net.TCPAddr).Port),
	})
	require.NoError(t, err)
	registered.SetReady(true)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, registered.Deregister(ctx))
		listener.Close()
		accepting.Wait()
	})
	scenario.Eventually(ctx, t, 10*time.Second, "it is healthy", func() error { return healthyInstance(ctx, service, registered.ID()) })
	return l
}

func healthyInstance(ctx context.Context, service, id string) error {
	ids, err := instances(ctx, service)
	if err != nil {
		return err
	}
	for _, one := range ids {
		if one == id {
			return nil
		}
	}
	return errNotYet
}
