package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/events"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// natsAway is how long NATS is taken away.
const natsAway = 10 * time.Second

// What happens to devices reaches who listens for it: once, in order, and all of
// it, also what happens while NATS is away, which no caller notices.
func TestEvents(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	l := listen(t, ctx)
	o := newOwner(t, ctx)
	var ids []string
	for n := range 3 {
		ids = append(ids, o.createDevice(t, ctx, fmt.Sprintf("device-%d", n)))
	}
	took := scenario.Eventually(ctx, t, 10*time.Second, "it is told of the devices", func() error { return l.heard(map[string]int{ids[0]: 1, ids[1]: 1, ids[2]: 1}) })
	t.Logf("told of three new devices within %s", took.Round(time.Millisecond))

	before, err := instances(ctx, "device")
	require.NoError(t, err)
	stop, changed := make(chan struct{}), make(chan error, 1)
	made := map[string]int{}
	for _, id := range ids {
		made[id] = 1
	}
	go func() { changed <- o.changeDevices(ctx, ids, stop, made) }()
	stopped := sync.OnceFunc(func() { close(stop) })
	defer stopped()

	pause(t, ctx, time.Second)
	kill(t, "natsd", 1)
	require.NoError(t, the.Jobs().Stop(ctx, "nats", false))
	pause(t, ctx, natsAway)
	waiting := l.oldest(t, ctx)
	now, err := instances(ctx, "device")
	require.NoError(t, err)
	require.ElementsMatch(t, before, now, "instances of device without NATS")
	_, err = the.Deploy(ctx, "nats", nil)
	require.NoError(t, err)
	there := time.Now()
	pause(t, ctx, time.Second)
	stopped()
	require.NoError(t, <-changed, "a change while NATS was away")
	scenario.Eventually(ctx, t, 30*time.Second, "it is told of all changes", func() error { return l.heard(made) })
	total := 0
	for _, n := range made {
		total += n
	}
	t.Logf("NATS was killed and away for %s, in which events waited for up to %.1f s; told of all %d once and in order %.1f s after it was back",
		natsAway, waiting, total, time.Since(there).Seconds())
	require.Greater(t, waiting, natsAway.Seconds()/2)
	scenario.Eventually(ctx, t, 10*time.Second, "no event waits", func() error {
		if age := l.oldest(t, ctx); age > 0 {
			return fmt.Errorf("one is %.1f s old", age)
		}
		return nil
	})
}

// createDevice makes a device and returns its id.
func (o *owner) createDevice(t *testing.T, ctx context.Context, requestID string) string {
	t.Helper()
	var made struct {
		Device struct {
			DeviceID string `json:"deviceId"`
		} `json:"device"`
	}
	o.do(t, ctx, http.MethodPost, o.on(""), map[string]any{"requestId": requestID, "settings": priced(1)}, &made)
	return made.Device.DeviceID
}

// priced are a device's settings.
func priced(amount int) map[string]any {
	return map[string]any{
		"name": "Gate 7", "place": map[string]any{"latitude": 48.35, "longitude": 11.79}, "venueType": "transit.airports.gates",
		"screen": map[string]any{"widthPx": 1080, "heightPx": 1920}, "loopLengthSeconds": 60, "slotLengthSeconds": 10,
		"slotPrice": map[string]any{"amountMinor": amount, "currency": "EUR"}, "timeZone": "Europe/Berlin",
	}
}

// changeDevices changes the price of one device after the other until stop is
// closed, and counts the revisions. Each change is asked for once.
func (o *owner) changeDevices(ctx context.Context, ids []string, stop <-chan struct{}, revisions map[string]int) error {
	pace := time.NewTicker(25 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-pace.C:
		case <-stop:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		id := ids[n%len(ids)]
		request := load.Request{Method: http.MethodPut, Path: o.on("/" + id), Token: o.token, Body: map[string]any{"settings": priced(2 + n)}}
		if _, err := o.doors.REST.Do(ctx, request, nil); err != nil {
			return fmt.Errorf("change %d: %w", n, err)
		}
		revisions[id]++
	}
}

// listener is somebody in the mesh whom NATS knows by a password, and who hears
// what happens to devices.
type listener struct {
	mu   sync.Mutex
	told map[string][]int64 // revisions by device
}

// listen makes NATS, which runs, know one user more, and listens as that. What it
// is to hear ends with the test.
func listen(t *testing.T, ctx context.Context) *listener {
	t.Helper()
	const user, field = "listener", "listener_password"
	password := rand.Text()
	changeUsers(t, ctx, func(items nomadapi.VariableItems) { items[field] = password })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		changeUsers(t, ctx, func(items nomadapi.VariableItems) { delete(items, field) })
	})
	m := as(t, user)
	bus, err := events.Connect(events.Config{
		Name: t.Name(), User: user, Password: password, Log: hclog.NewNullLogger(),
		Dial: func(ctx context.Context) (net.Conn, error) { return m.DialContext(ctx, "nats") },
	})
	require.NoError(t, err)
	t.Cleanup(bus.Close)
	took := scenario.Eventually(ctx, t, time.Minute, "NATS lets the new user in", func() error {
		if !bus.NATS().IsConnected() {
			return errors.Join(errNotYet, bus.NATS().LastError())
		}
		return nil
	})
	t.Logf("NATS let a new user in after %s, without a restart", took.Round(time.Millisecond))
	js, err := jetstream.New(bus.NATS())
	require.NoError(t, err)

	l := &listener{told: map[string][]int64{}}
	listening, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for next := uint64(1); listening.Err() == nil; {
			next = l.read(listening, js, next)
		}
	}()
	t.Cleanup(func() { end(); <-ended })
	return l
}

// read hears events from number next on until something breaks, and returns the
// number of the next one.
func (l *listener) read(ctx context.Context, js jetstream.JetStream, next uint64) uint64 {
	retry := time.NewTimer(200 * time.Millisecond)
	defer func() {
		select {
		case <-retry.C:
		case <-ctx.Done():
		}
	}()
	consumer, err := js.OrderedConsumer(ctx, "DEVICE", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"device.>"}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: next, MaxResetAttempts: 1,
	})
	if err != nil {
		return next
	}
	messages, err := consumer.Messages()
	if err != nil {
		return next
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return next
		}
		meta, err := msg.Metadata()
		if err != nil {
			return next
		}
		var changed devicev1.DeviceChanged
		revision := int64(-1) // of what cannot be read
		if proto.Unmarshal(msg.Data(), &changed) == nil {
			revision = changed.GetDevice().GetRevision()
		}
		l.mu.Lock()
		key := msg.Headers().Get("Marquee-Key")
		l.told[key] = append(l.told[key], revision)
		l.mu.Unlock()
		next = meta.Sequence.Stream + 1
	}
}

// heard says, as an error, in which way it was not told of each of the devices'
// revisions once and in order.
func (l *listener) heard(revisions map[string]int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, n := range revisions {
		want := make([]int64, n)
		for i := range want {
			want[i] = int64(i + 1)
		}
		if got := l.told[id]; !slices.Equal(want, got) {
			return fmt.Errorf("of %s there are revisions 1 to %d, and it was told of %v", id, n, got)
		}
	}
	return nil
}

// oldest is the age in seconds of what waits to be told, as the instances of
// device have it.
func (l *listener) oldest(t *testing.T, ctx context.Context) (age float64) {
	t.Helper()
	entries, _, err := the.Cluster().Consul().Health().Service("device", "", true, (&consulapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	require.NotEmpty(t, entries)
	for _, e := range entries {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.Service.Meta["admin"]+"/metrics", http.NoBody)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		require.NoError(t, err)
		_, line, found := strings.Cut(string(text), "\noutbox_oldest_seconds ")
		require.True(t, found, "%s has no such metric", e.Service.ID)
		line, _, _ = strings.Cut(line, "\n")
		seconds, err := strconv.ParseFloat(line, 64)
		require.NoError(t, err)
		age = max(age, seconds)
	}
	return age
}

// changeUsers changes the Nomad variable with NATS's users.
func changeUsers(t *testing.T, ctx context.Context, change func(nomadapi.VariableItems)) {
	t.Helper()
	variables := the.Cluster().Nomad().Variables()
	variable, _, err := variables.Read("nomad/jobs/nats", (&nomadapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	change(variable.Items)
	_, _, err = variables.CheckedUpdate(variable, (&nomadapi.WriteOptions{}).WithContext(ctx))
	require.NoError(t, err)
}
