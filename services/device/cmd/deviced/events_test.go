package main

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/natstest"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// announced is an event about a device.
type announced struct {
	subject, key string
	*devicev1.Device
}

// events are all that were published. It waits until none is in the outbox.
func (w *world) events(t *testing.T, server *natstest.Server) (all []announced) {
	t.Helper()
	ctx := within(t)
	db, err := pgx.Connect(ctx, w.url)
	require.NoError(t, err)
	defer db.Close(ctx)
	require.Eventually(t, func() bool {
		var n int
		require.NoError(t, db.QueryRow(ctx, "SELECT count(*) FROM outbox").Scan(&n))
		return n == 0
	}, 20*time.Second, 10*time.Millisecond, "the outbox is not emptied")
	conn, err := nats.Connect(server.Address)
	require.NoError(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	stream, err := js.Stream(ctx, "DEVICE")
	require.NoError(t, err)
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		msg, err := stream.GetMsg(ctx, seq)
		require.NoError(t, err)
		var changed devicev1.DeviceChanged
		require.NoError(t, proto.Unmarshal(msg.Data, &changed))
		all = append(all, announced{msg.Subject, msg.Header.Get("Marquee-Key"), changed.GetDevice()})
	}
	return all
}

func TestEvents(t *testing.T) {
	server := natstest.Start(t)
	w := newWorld(t)
	w.nats = server.Address
	i := w.start(t)
	ctx := i.owner(t)
	made := i.create(t, "request-1")
	i.create(t, "request-1") // which repeats it
	id := made.GetDeviceId()
	dearer := goodSettings()
	dearer.SlotPrice.AmountMinor = 300
	for range 2 { // of which the second changes nothing
		_, err := i.UpdateDevice(ctx, &devicev1.UpdateDeviceRequest{OrganisationId: organisation, DeviceId: id, Settings: dearer})
		require.NoError(t, err)
	}
	revoke := func() {
		t.Helper()
		_, err := i.RevokeDevice(ctx, &devicev1.RevokeDeviceRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
	}
	revoke() // nothing, yet
	i.claim(t, id)
	_, err := i.RotateCredentials(ctx, &devicev1.RotateCredentialsRequest{OrganisationId: organisation, DeviceId: id})
	require.NoError(t, err)
	revoke()
	revoke()
	last := i.get(t, id)
	for range 2 {
		_, err := i.DeleteDevice(ctx, &devicev1.DeleteDeviceRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
	}

	var subjects []string
	all := w.events(t, server)
	for _, e := range all {
		subjects = append(subjects, e.subject)
		require.Equal(t, id, e.key)
		require.Equal(t, id, e.GetDeviceId())
		require.Equal(t, organisation, e.GetOrganisationId())
		require.Nil(t, e.GetPresence())
	}
	require.Equal(t, []string{"device.created", "device.updated", "device.claimed", "device.revoked", "device.deleted"}, subjects)
	require.Equal(t, goodSettings().String(), all[0].GetSettings().String())
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_UNCLAIMED, all[0].GetState())
	require.EqualValues(t, 1, all[0].GetRevision())
	require.Equal(t, dearer.String(), all[1].GetSettings().String())
	require.EqualValues(t, 2, all[1].GetRevision())
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_CLAIMED, all[2].GetState())
	require.NotNil(t, all[2].GetClaimTime())
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_REVOKED, all[3].GetState())
	last.Presence = nil
	require.Equal(t, last.String(), all[4].String(), "as it was last")
}

// Instances that change the same devices at once, while NATS goes and comes, are
// heard of once and in order, and none of their callers notices.
func TestEventsInOrder(t *testing.T) {
	const writers, changes = 4, 15
	server := natstest.Start(t)
	w := newWorld(t)
	w.nats = server.Address
	instances := []*instance{w.start(t), w.start(t)}
	var ids []string
	for n := range 2 {
		ids = append(ids, instances[0].create(t, fmt.Sprintf("request-%d", n)).GetDeviceId())
	}
	ctx := instances[0].owner(t)
	change := func(writer, n int) error {
		s := goodSettings()
		s.SlotPrice.AmountMinor = int64(1000*writer + n)
		_, err := instances[writer%2].UpdateDevice(ctx, &devicev1.UpdateDeviceRequest{OrganisationId: organisation, DeviceId: ids[n%2], Settings: s})
		return err
	}
	round := func(from int) {
		var all sync.WaitGroup
		for writer := range writers {
			all.Go(func() {
				for n := from; n < from+changes; n++ {
					assert.NoError(t, change(writer, n))
				}
			})
		}
		all.Wait()
	}
	round(0)
	server.Kill()
	round(changes)
	for _, i := range instances {
		require.Eventually(t, func() bool { return i.metric(t, "outbox_oldest_seconds") > 0 }, patience, 50*time.Millisecond, "nobody sees that events wait")
	}
	server.Restart()
	round(2 * changes)

	got := map[string][]int64{}
	for _, e := range w.events(t, server) {
		got[e.key] = append(got[e.key], e.GetRevision())
	}
	for _, id := range ids {
		want := make([]int64, instances[0].get(t, id).GetRevision())
		for n := range want {
			want[n] = int64(n + 1)
		}
		require.Greater(t, len(want), changes)
		require.Equal(t, want, got[id])
	}
	for _, i := range instances {
		require.Eventually(t, func() bool { return i.metric(t, "outbox_oldest_seconds") == 0 }, patience, 50*time.Millisecond)
	}
	require.True(t, slices.ContainsFunc(instances, func(i *instance) bool { return i.metric(t, "events_published_total") > 0 }))
}
