package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
)

const (
	// devicesVariable says how many displays TestOutage has, for example 2000.
	devicesVariable = "MARQUEE_E2E_DEVICES"
	devicesDefault  = 100
	// outage is how long Postgres is frozen.
	outage = 10 * time.Second
	// playsASecond is about how many plays all displays make together.
	playsASecond = 200
)

// connected is how many displays are connected, to all instances together.
func connected(ctx context.Context) (int, error) {
	where, err := players(ctx)
	total := 0
	for _, n := range where {
		total += n
	}
	return total, err
}

// uploadText uploads text through the door for media and returns where it is.
func uploadText(t *testing.T, ctx context.Context, o *owner, content string) string {
	t.Helper()
	gateways, _ := bothGateways(t, ctx)
	name := scenario.NewMedia(gateways, o.token).Upload(ctx, t, o.organisation, []byte(content), 1)
	return "http://" + gateways[0].HTTP + "/v1/media/" + name
}

// newFleet enrols a fleet, which is not run yet.
func newFleet(t *testing.T, ctx context.Context) (*scenario.Fleet, *owner) {
	t.Helper()
	count := number(t, devicesVariable, devicesDefault)
	o := ownerThrough(t, ctx, followDoors(t, ctx)) // gateways are rolled, to other ports
	gateways, _ := bothGateways(t, ctx)
	bases, _ := scenario.Addresses(gateways)
	return scenario.NewFleet(ctx, t, scenario.FleetConfig{
		Owner: o.shared, Gateways: bases, Count: count, Slot: time.Duration(max(1, count/playsASecond)) * time.Second,
		Doors: func(ctx context.Context) ([]string, error) {
			gateways, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
			var list []string
			for _, g := range gateways {
				list = append(list, g.Devices)
			}
			return list, err
		},
		Connected: func(ctx context.Context) (int, error) {
			now, err := connected(ctx)
			if err != nil {
				return 0, err
			}
			shown, err := o.shared.Online(ctx)
			return min(now, shown), err // others may be connected, too
		},
	}), o
}

// runFleet enrols a fleet, has it play "first", and waits until all of it is
// connected. It ends with the test.
func runFleet(t *testing.T, ctx context.Context) (*scenario.Fleet, *owner) {
	t.Helper()
	f, o := newFleet(t, ctx)
	require.NoError(t, f.Show(ctx, "first", uploadText(t, ctx, o, "the first")))
	f.Run(ctx, t)
	return f, o
}

// A takedown and another playlist reach every display that is connected.
func TestFanOut(t *testing.T) {
	ctx := beginBeside(t, 4*time.Minute)
	f, o := runFleet(t, ctx)
	f.Showing(ctx, t, "first")
	var group struct{ Group struct{ GroupID string } }
	o.do(t, ctx, http.MethodPost, "/v1/organisations/"+o.organisation+"/groups", map[string]string{"requestId": "the-group", "name": "All of them"}, &group)
	path := "/v1/organisations/" + o.organisation + "/groups/" + group.Group.GroupID
	for some := range slices.Chunk(f.IDs, 500) {
		o.do(t, ctx, http.MethodPost, path+"/devices:add", map[string]any{"deviceIds": some}, nil)
	}

	began := time.Now()
	type command struct {
		Command struct {
			GroupCommandID string
			DeviceCount    int
			Counts         []struct {
				State string
				Count int
			}
		}
	}
	var sent command
	o.do(t, ctx, http.MethodPost, path+"/commands", map[string]string{"requestId": "takedown", "kind": "COMMAND_KIND_TAKEDOWN", "creativeId": "first"}, &sent)
	require.Equal(t, len(f.IDs), sent.Command.DeviceCount)
	asked := time.Since(began)
	scenario.Eventually(ctx, t, time.Minute, "every display has taken it down", func() error {
		var now command
		if err := o.shared.Call(ctx, http.MethodGet, path+"/commands/"+sent.Command.GroupCommandID, nil, &now); err != nil {
			return err
		}
		if counts := now.Command.Counts; len(counts) != 1 || counts[0].State != "COMMAND_STATE_DONE" || counts[0].Count != len(f.IDs) {
			return fmt.Errorf("%v", counts)
		}
		return nil
	})
	t.Logf("a takedown was on all of %d displays, and their answers stored, %s after it was asked for; the call took %s",
		len(f.IDs), time.Since(began).Round(time.Millisecond), asked.Round(time.Millisecond))
	f.Showing(ctx, t, "nothing")

	second := uploadText(t, ctx, o, "the second")
	began = time.Now()
	require.NoError(t, f.Show(ctx, "second", second))
	put := time.Since(began)
	last := f.Showing(ctx, t, "second")
	t.Logf("another playlist for each: %s for the calls; the last display shows it, with its media, %s after the last of them",
		put.Round(time.Millisecond), last.Round(time.Millisecond))
	require.NoError(t, f.End(t, syscall.SIGTERM))
}

// Displays play on through everything that goes away, and hand in later: every
// play that the player wrote down is counted once.
func TestOutage(t *testing.T) {
	ctx := beginBeside(t, 8*time.Minute)
	f, o := runFleet(t, ctx)
	recovery(t, ctx, "device", "deviced", 2, kill(t, "deviced", 1))
	f.Online(ctx, t, "one of two of device killed")

	kill(t, "natsd", 1)
	require.NoError(t, the.Jobs().Stop(ctx, "nats", false))
	require.NoError(t, f.Show(ctx, "second", uploadText(t, ctx, o, "the second")), "playlists without NATS")
	database := postgresProcesses(t, "device-db")
	signalAll(t, database, syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { signalAll(t, database, syscall.SIGCONT) })
	defer thaw()
	pause(t, ctx, outage)
	thaw()
	f.Online(ctx, t, "Postgres frozen for "+outage.String()+", and NATS gone for longer")

	// NATS comes back while the player dies.
	var nats sync.WaitGroup
	var failed error
	nats.Go(func() { _, failed = the.Deploy(ctx, "nats", nil) })
	defer nats.Wait()
	for range 3 {
		pause(t, ctx, time.Duration(500+rand.IntN(1500))*time.Millisecond)
		f.Kill(t)
	}
	f.Online(ctx, t, "the player killed three times")
	f.Showing(ctx, t, "second")
	nats.Wait()
	require.NoError(t, failed)

	the.watched.Wait() // from here on gateways are started anew
	recovery(t, ctx, "gateway", "gatewayd", 2, kill(t, "gatewayd", 1))
	f.Online(ctx, t, "one of two of gateway killed")
	// The same with other resources is another version. Both at once: displays are
	// sent from gateway to gateway while what is behind them changes.
	var changed []*jobs.Job
	for _, service := range []string{"device", "gateway"} {
		changed = append(changed, loadJob(t, ctx, service, map[string]string{service + "_cpu": strconv.Itoa(101 + rand.IntN(50))}))
	}
	for _, err := range deployAtOnce(t, ctx, changed) {
		require.NoError(t, err)
	}
	f.Online(ctx, t, "device and gateway rolled")
	f.Finish(ctx, t)
	checkPlays(t, ctx)
}

// checkPlays has deviced compare all plays with their sums, as docs/operations.md
// has it.
func checkPlays(t *testing.T, ctx context.Context) {
	t.Helper()
	require.Contains(t, operate(t, ctx, "device", "deviced --check-plays"), "all hours agree with their plays\n")
}

// operate runs a command of a service by hand, as an operator does, and returns what
// it says.
func operate(t *testing.T, ctx context.Context, service, command string) string {
	t.Helper()
	run := exec.CommandContext(ctx, "bash", "-c", fmt.Sprintf(`eval "$("$MARQUEE" --cluster e2e env --service %s)" && %s`, service, command)) //nolint:gosec // the tests' own
	run.Dir = the.root
	run.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "MARQUEE=" + filepath.Join(the.root, ".marquee", "bin", "marquee")}
	out, err := run.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}
