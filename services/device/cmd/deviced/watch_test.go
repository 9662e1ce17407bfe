package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

type watching = grpc.ServerStreamingClient[devicev1.WatchDevicesResponse]

// watch begins one, and waits until all that there is has been told.
func (i *instance) watch(t *testing.T, ctx context.Context, ids ...string) (watching, map[string]*devicev1.DeviceStatus) {
	t.Helper()
	var (
		stream watching
		there  map[string]*devicev1.DeviceStatus
	)
	require.Eventually(t, func() bool {
		var err error
		stream, err = i.WatchDevices(ctx, &devicev1.WatchDevicesRequest{OrganisationId: organisation, DeviceIds: ids})
		require.NoError(t, err)
		there = make(map[string]*devicev1.DeviceStatus)
		for {
			e, err := stream.Recv()
			if err != nil {
				refused(t, err, codes.Unavailable, "WATCH_INTERRUPTED") // it does not listen yet
				return false
			}
			if e.GetSnapshotComplete() != nil {
				return true
			}
			there[e.GetStatus().GetDeviceId()] = e.GetStatus()
		}
	}, patience, 20*time.Millisecond, "nobody can watch")
	return stream, there
}

// hear is the next event for which want is true.
func hear(t *testing.T, stream watching, want func(*devicev1.WatchDevicesResponse) bool) *devicev1.WatchDevicesResponse {
	t.Helper()
	for {
		e, err := stream.Recv()
		require.NoError(t, err)
		if want(e) {
			return e
		}
	}
}

func isOnline(id string, online bool) func(*devicev1.WatchDevicesResponse) bool {
	return func(e *devicev1.WatchDevicesResponse) bool {
		return e.GetStatus().GetDeviceId() == id && e.GetStatus().GetPresence().GetOnline() == online
	}
}

// TestWatchDevices watches at one instance a display that is connected to another.
func TestWatchDevices(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t), w.start(t)
	device := one.enrol(t, "request-1")
	id := device.GetDeviceId()
	put(t, one, id, "a")
	viewer := w.as(within(t), t, "acc_grace", organisation, auth.Viewer)
	stream, there := two.watch(t, viewer)
	require.Len(t, there, 1)
	require.Equal(t, "Gate 7", there[id].GetName())
	require.EqualValues(t, 1, there[id].GetPlaylistVersion())
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_CLAIMED, there[id].GetState())
	require.False(t, there[id].GetPresence().GetOnline())

	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		p := connect(t, one.players, device)
		told := hear(t, stream, isOnline(id, true)).GetStatus()
		require.Equal(t, one.get(t, id).GetPresence().String(), told.GetPresence().String())
		at := time.Now().Add(-time.Minute).UTC().Truncate(time.Millisecond)
		full, short := play(at, "a", 10000), play(at.Add(time.Second), "a", 5000)
		require.NoError(t, p.publish("d/"+id+"/up/plays", batch("x", full, short)))
		plays := hear(t, stream, func(e *devicev1.WatchDevicesResponse) bool { return e.GetPlays() != nil }).GetPlays().GetPlays()
		require.Len(t, plays, 2)
		for n, want := range []struct {
			text     string
			duration int64
			counted  bool
		}{{full, 10000, true}, {short, 5000, false}} {
			require.Contains(t, want.text, plays[n].GetPlayId())
			require.Equal(t, [4]any{id, "a", want.duration, want.counted}, [4]any{plays[n].GetDeviceId(), plays[n].GetCreativeId(), plays[n].GetDurationMs(), plays[n].GetCounted()})
			require.True(t, plays[n].GetStartTime().AsTime().Equal(at.Add(time.Duration(n)*time.Second)))
		}
		// Handed in again they are not counted again, and a change behind them comes.
		require.NoError(t, p.publish("d/"+id+"/up/plays", batch("x", full, short)))
		p.close()
		hear(t, stream, func(e *devicev1.WatchDevicesResponse) bool {
			require.Nil(t, e.GetPlays())
			return isOnline(id, false)(e)
		})
	})

	t.Run("AnInstanceStops", func(t *testing.T) {
		p, err := dial3(t, one.players, id, device.GetSecret())
		require.NoError(t, err)
		hear(t, stream, isOnline(id, true))
		other, _ := one.watch(t, w.owner(t))
		one.stop()
		ended(t, p, patience, "its instance has stopped")
		hear(t, stream, isOnline(id, false))
		for err = nil; err == nil; {
			_, err = other.Recv()
		}
		refused(t, err, codes.Unavailable, "WATCH_INTERRUPTED")
	})
}

// TestWatchRefused are those who may not watch, and what cannot be watched.
func TestWatchRefused(t *testing.T) {
	i := newWorld(t).start(t)
	id := i.create(t, "request-1").GetDeviceId()
	i.watch(t, i.owner(t))
	try := func(ctx context.Context, organisationID string, ids ...string) error {
		stream, err := i.WatchDevices(ctx, &devicev1.WatchDevicesRequest{OrganisationId: organisationID, DeviceIds: ids})
		require.NoError(t, err)
		_, err = stream.Recv()
		return err
	}
	for role, allowed := range map[auth.Role]bool{auth.Owner: true, auth.Operator: true, auth.Viewer: true, auth.Advertiser: false} {
		err := try(i.as(within(t), t, "acc_grace", organisation, role), organisation)
		if allowed {
			require.NoError(t, err, role)
			continue
		}
		refused(t, err, codes.PermissionDenied, "ROLE_NOT_ALLOWED")
	}
	stranger := i.as(within(t), t, "acc_eve", another, auth.Owner)
	refused(t, try(stranger, organisation), codes.PermissionDenied, "NOT_A_MEMBER")
	refused(t, try(stranger, another, id), codes.NotFound, "DEVICE_NOT_FOUND")
	refused(t, try(within(t), organisation), codes.Unauthenticated, "TOKEN_MISSING")
	many := make([]string, 201)
	for n := range many {
		many[n] = fmt.Sprintf("dev_01ARZ3NDEKTSV4RRFFQ69G5%03d", n)
	}
	for name, ids := range map[string][]string{"NoID": {"x"}, "Empty": {""}, "Twice": {id, id}, "TooMany": many} {
		t.Run(name, func(t *testing.T) {
			refused(t, try(i.owner(t), organisation, ids...), codes.InvalidArgument, "VALIDATION_FAILED")
		})
	}
	refused(t, try(i.owner(t), organisation, many[:200]...), codes.NotFound, "DEVICE_NOT_FOUND")

	t.Run("RightsEnd", func(t *testing.T) {
		ends := func(stream watching, reason string) {
			t.Helper()
			var err error
			for err == nil {
				_, err = stream.Recv()
			}
			refused(t, err, codes.Unauthenticated, reason)
		}
		out, _ := i.watch(t, i.as(within(t), t, "acc_out", organisation, auth.Viewer))
		stays, _ := i.watch(t, i.as(within(t), t, "acc_stays", organisation, auth.Viewer))
		i.account.EndSession("acc_out")
		ends(out, "SESSION_ENDED")
		put(t, i, id, "a")
		hear(t, stays, func(e *devicev1.WatchDevicesResponse) bool { return e.GetStatus().GetPlaylistVersion() == 1 })
	})
}

// TestWatchSlowReader has one who watches and does not read: the instance lets go
// of it while it still does not, and tells it when it does.
func TestWatchSlowReader(t *testing.T) {
	i := newWorld(t).start(t)
	device := i.enrol(t, "request-1")
	id := device.GetDeviceId()
	put(t, i, id, "a")
	slow, _ := i.watch(t, i.owner(t))
	require.Contains(t, i.metrics(t), "\ndevice_watches_open 1\n")
	p, err := dial5(t, i.players, id, device.GetSecret())
	require.NoError(t, err)
	let := `grpc_server_call_seconds_count{code="RESOURCE_EXHAUSTED",method="/marquee.device.v1.DeviceService/WatchDevices"} 1`
	began := time.Now()
	for n := 0; !strings.Contains(i.metrics(t), let); n++ {
		require.Less(t, time.Since(began), 3*patience, "it is not let go of")
		plays := make([]string, 200)
		for k := range plays {
			plays[k] = play(time.Now(), "a", 10000)
		}
		require.NoError(t, p.publish("d/"+id+"/up/plays", batch(fmt.Sprint(n), plays...)), "the player is held up")
	}
	require.Contains(t, i.metrics(t), "\ndevice_watches_open 0\n")
	for err = nil; err == nil; {
		_, err = slow.Recv()
	}
	refused(t, err, codes.ResourceExhausted, "WATCH_BEHIND")
}

func (i *instance) metrics(t *testing.T) string {
	t.Helper()
	answer, err := http.Get("http://" + i.admin + "/metrics")
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return string(text)
}

// instanceFlags is the environment variable with which TestInstance is an instance.
const instanceFlags = "DEVICED_TEST_FLAGS"

// TestInstance is no test: TestWatchKilledInstance runs it in a process of its own.
func TestInstance(t *testing.T) {
	text := os.Getenv(instanceFlags)
	if text == "" {
		t.Skip("it is an instance for TestWatchKilledInstance")
	}
	var given struct {
		Flags   []string
		Account string
	}
	require.NoError(t, json.Unmarshal([]byte(text), &given))
	cfg, err := service.Parse[config]("device", given.Flags, io.Discard)
	require.NoError(t, err)
	cfg.Upstreams = map[string][]string{"account": {given.Account}}
	cfg.OnMQTT = func(address string) { fmt.Println("players at " + address) }
	cfg.LogOutput = os.Stderr
	require.NoError(t, run(context.Background(), cfg))
}

// TestWatchKilledInstance kills the process that a player is connected to.
func TestWatchKilledInstance(t *testing.T) {
	w := newWorld(t)
	here := w.start(t)
	flags, err := json.Marshal(map[string]any{
		"Flags":   append([]string{"--mesh=plaintext", "--environment=test", "--mode=test", "--drain-delay=0s", "--nats-address=" + w.nats}, w.database...),
		"Account": w.account.Address(),
	})
	require.NoError(t, err)
	there := exec.Command(os.Args[0], "-test.run=^TestInstance$")
	there.Env = append(os.Environ(), instanceFlags+"="+string(flags))
	there.Stderr = os.Stderr
	out, err := there.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, there.Start())
	killed := false
	kill := func() {
		if !killed {
			killed = true
			require.NoError(t, there.Process.Kill())
			_ = there.Wait() // it was killed
		}
	}
	t.Cleanup(kill)
	players := ""
	for lines := bufio.NewScanner(out); players == "" && lines.Scan(); {
		_, players, _ = strings.Cut(lines.Text(), "players at ")
	}
	require.NotEmpty(t, players, "the other instance does not start")

	device := here.enrol(t, "request-1")
	id := device.GetDeviceId()
	stream, _ := here.watch(t, w.owner(t))
	_, err = dial3(t, players, id, device.GetSecret())
	require.NoError(t, err)
	hear(t, stream, isOnline(id, true))
	began := time.Now()
	kill()
	told := hear(t, stream, isOnline(id, false)).GetStatus()
	took := time.Since(began)
	require.Equal(t, here.get(t, id).GetPresence().String(), told.GetPresence().String())
	t.Logf("told %s after the instance was killed", took.Round(time.Millisecond))
	require.Less(t, took, 6*time.Second)
}
