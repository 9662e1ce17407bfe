package main

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/natstest"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// stream is one of NATS's, past the service.
func stream(t *testing.T, server *natstest.Server, name string, create bool) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	conn, err := nats.Connect(server.Address)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	var found jetstream.Stream
	if create {
		found, err = js.CreateStream(within(t), jetstream.StreamConfig{Name: name, Subjects: []string{"device.>"}})
		require.NoError(t, err)
		return js, found
	}
	require.Eventually(t, func() bool {
		found, err = js.Stream(within(t), name)
		return err == nil
	}, patience, 20*time.Millisecond, "there is no stream %s", name)
	return js, found
}

// told are the events about lines after the first seen ones, when none waits any more.
func (w *world) told(t *testing.T, server *natstest.Server, seen int) (lines []*orderv1.BookedLine) {
	t.Helper()
	db, err := pgx.Connect(within(t), w.url)
	require.NoError(t, err)
	defer db.Close(within(t))
	require.Eventually(t, func() bool {
		var n int
		require.NoError(t, db.QueryRow(within(t), "SELECT count(*) FROM outbox").Scan(&n))
		return n == 0
	}, patience, 10*time.Millisecond, "the outbox is not emptied")
	_, all := stream(t, server, "ORDER", false)
	for seq := uint64(seen + 1); seq <= all.CachedInfo().State.LastSeq; seq++ {
		msg, err := all.GetMsg(within(t), seq)
		require.NoError(t, err)
		require.Equal(t, "line.changed", msg.Subject)
		var changed orderv1.LineChanged
		require.NoError(t, proto.Unmarshal(msg.Data, &changed))
		require.Equal(t, changed.GetLine().GetDeviceId(), msg.Header.Get("Marquee-Key"))
		lines = append(lines, changed.GetLine())
	}
	return lines
}

// Displays hear of all that changes what they show, and of nothing else.
func TestTelling(t *testing.T) {
	server := natstest.Start(t)
	w := newWorld(t)
	w.nats = server.Address
	i := w.start(t, "--media-url=file://"+t.TempDir())
	displays := i.displays(t, 2)
	seen := 0
	next := func(n int) []*orderv1.BookedLine {
		t.Helper()
		lines := w.told(t, server, seen)
		require.Len(t, lines, n)
		seen += n
		return lines
	}
	text := func(words string) *orderv1.CreativeContent {
		return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: &orderv1.TextContent{Text: words}}}
	}
	edit := func(id, words string) {
		t.Helper()
		_, err := i.UpdateCreative(i.buyer(t), &orderv1.UpdateCreativeRequest{OrganisationId: buyer, CreativeId: id, Title: "Sale", Content: text(words)})
		require.NoError(t, err)
	}
	decide := func(id string, version int32, approve bool) {
		t.Helper()
		req := &orderv1.DecideApprovalRequest{OrganisationId: owner, CreativeId: id, Version: version, Approve: approve}
		if !approve {
			req.Reason = "not here"
		}
		_, err := i.DecideApproval(i.owner(t), req)
		require.NoError(t, err)
	}
	made, err := i.CreateCreative(i.buyer(t), &orderv1.CreateCreativeRequest{OrganisationId: buyer, RequestId: "request-c", Title: "Sale", Content: text("Sale")})
	require.NoError(t, err)
	sale := made.GetCreative()

	o := i.book(t, "request-1", displays...)
	booked := next(2)
	first, second := o.GetLines()[0], o.GetLines()[1]
	mine := booked[0]
	require.ElementsMatch(t, []string{first.GetLineId(), second.GetLineId()}, []string{booked[0].GetLineId(), booked[1].GetLineId()})
	require.Equal(t, mine.GetFlight().String(), days(2).String())
	require.Equal(t, []int32{0}, mine.GetSlots())
	require.Equal(t, first.GetStartTime().AsTime(), mine.GetStartTime().AsTime())
	require.Equal(t, first.GetEndTime().AsTime(), mine.GetEndTime().AsTime())
	require.EqualValues(t, 1, mine.GetRevision())
	require.Nil(t, mine.GetShowing())
	require.False(t, mine.GetRemoved())

	show := func(creative string, lines ...string) {
		t.Helper()
		_, err := i.SetLineCreative(i.buyer(t), &orderv1.SetLineCreativeRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), LineIds: lines, CreativeId: creative})
		require.NoError(t, err)
	}
	show(sale.GetCreativeId(), first.GetLineId())
	next(0) // nobody has approved it
	decide(sale.GetCreativeId(), 1, true)
	got := next(1)[0]
	require.Equal(t, first.GetLineId(), got.GetLineId())
	require.EqualValues(t, 2, got.GetRevision())
	require.Equal(t, first.GetLineId()+"-1", got.GetShowing().GetShowingId())
	require.Equal(t, "application/vnd.marquee.text+json", got.GetShowing().GetMediaType())
	require.Equal(t, "/v1/media/"+got.GetShowing().GetSha256(), got.GetShowing().GetUrl())
	require.Equal(t, sale.GetVersions()[0].GetSha256(), got.GetShowing().GetSha256())
	require.EqualValues(t, 10_000, got.GetShowing().GetDurationMs())
	require.Empty(t, got.GetTakenDown())
	require.EqualValues(t, 1, i.order(t, o.GetOrderId()).GetLines()[0].GetShownVersion())
	decide(sale.GetCreativeId(), 1, true)
	next(0) // it is as it was

	edit(sale.GetCreativeId(), "Sale ends today")
	next(0) // what was approved goes on
	decide(sale.GetCreativeId(), 2, false)
	next(0)
	decide(sale.GetCreativeId(), 2, true)
	got = next(1)[0]
	require.Equal(t, first.GetLineId()+"-2", got.GetShowing().GetShowingId())
	require.Empty(t, got.GetTakenDown(), "the one before may end its turn")
	decide(sale.GetCreativeId(), 2, false)
	got = next(1)[0]
	require.Equal(t, first.GetLineId()+"-3", got.GetShowing().GetShowingId(), "the version before is shown again")
	require.Equal(t, sale.GetVersions()[0].GetSha256(), got.GetShowing().GetSha256())
	require.Equal(t, []string{first.GetLineId() + "-1", first.GetLineId() + "-2"}, got.GetTakenDown())

	show("", first.GetLineId())
	got = next(1)[0]
	require.Nil(t, got.GetShowing())
	require.Equal(t, []string{first.GetLineId() + "-1", first.GetLineId() + "-2"}, got.GetTakenDown())
	show(sale.GetCreativeId())
	require.Equal(t, []string{first.GetLineId() + "-4", second.GetLineId() + "-1"}, showings(next(2)))
	_, err = i.TakeDownCreative(i.buyer(t), &orderv1.TakeDownCreativeRequest{OrganisationId: buyer, CreativeId: sale.GetCreativeId()})
	require.NoError(t, err)
	for n, l := range next(2) {
		require.Nil(t, l.GetShowing())
		require.Contains(t, l.GetTakenDown(), []string{first.GetLineId() + "-4", second.GetLineId() + "-1"}[n])
	}
	require.Zero(t, i.order(t, o.GetOrderId()).GetLines()[0].GetShownVersion())

	_, err = i.CancelOrder(i.buyer(t), &orderv1.CancelOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), RequestId: "cancel-1"})
	require.NoError(t, err)
	for _, l := range next(2) {
		require.True(t, l.GetRemoved())
	}
	text0, err := w.command(t, "--check-ledger")
	require.NoError(t, err, text0)
}

func showings(lines []*orderv1.BookedLine) (ids []string) {
	for _, l := range lines {
		ids = append(ids, l.GetShowing().GetShowingId())
	}
	return ids
}

// A line that shows what its display was not told, whatever went wrong, is found, and
// told again.
func TestBehind(t *testing.T) {
	w := newWorld(t)
	i := w.start(t, "--media-url=file://"+t.TempDir())
	o := i.book(t, "request-1", i.displays(t, 1)...)
	made, err := i.CreateCreative(i.buyer(t), &orderv1.CreateCreativeRequest{
		OrganisationId: buyer, RequestId: "request-c", Title: "Sale", Content: &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: &orderv1.TextContent{Text: "Sale"}}},
	})
	require.NoError(t, err)
	_, err = w.command(t, "--rebuild-playlists")
	require.NoError(t, err)
	// As if a decision had been made that told nobody.
	w.exec(t, "UPDATE lines SET creative_id = $1", made.GetCreative().GetCreativeId())
	w.exec(t, "INSERT INTO approvals SELECT $1, 1, $2, 'APPROVED', '', now(), now()", made.GetCreative().GetCreativeId(), owner)
	text, err := w.command(t, "--check-playlists")
	require.ErrorIs(t, err, errPlaylists)
	require.Contains(t, text, "its display was not told what it should show by now")
	text, err = w.command(t, "--rebuild-playlists")
	require.NoError(t, err)
	require.Equal(t, "1 displays: 1 lines were different, of 1 lines displays were not told\n", text)
	_, err = w.command(t, "--check-playlists")
	require.NoError(t, err)
	line := w.device.lines[o.GetLines()[0].GetLineId()]
	require.Equal(t, line.GetLineId()+"-1", line.GetShowing().GetShowingId())
}

// What happens to devices arrives as events, whether or not all of them are read.
func TestDisplaysArrive(t *testing.T) {
	server := natstest.Start(t)
	js, _ := stream(t, server, "DEVICE", true)
	w := newWorld(t)
	w.nats = server.Address
	i := w.start(t, "--sync-every=1h")
	publish := func(subject string, d *devicev1.Device) {
		t.Helper()
		payload, err := proto.Marshal(&devicev1.DeviceChanged{Device: d})
		require.NoError(t, err)
		_, err = js.PublishMsg(within(t), &nats.Msg{Subject: subject, Data: payload, Header: nats.Header{
			"Nats-Msg-Id": []string{ulid.Make().String()}, "Marquee-Key": []string{d.GetDeviceId()}, "Marquee-Time": []string{time.Now().UTC().Format(time.RFC3339Nano)},
		}})
		require.NoError(t, err)
	}
	price := func() (minor int64) {
		t.Helper()
		found, err := i.SearchAvailability(i.buyer(t), &orderv1.SearchAvailabilityRequest{OrganisationId: buyer, Flight: days(1)})
		require.NoError(t, err)
		for _, d := range found.GetDisplays() {
			minor += d.GetSlotPrice().GetAmountMinor()
		}
		return minor
	}
	require.Zero(t, price())
	id := w.device.add(6)
	made := proto.CloneOf(w.device.devices[0])
	publish("device.claimed", made)
	require.Eventually(t, func() bool { return price() == 7 }, patience, 20*time.Millisecond, "%s is not sold", id)
	made.Settings.SlotPrice.AmountMinor, made.Revision = 9, 2
	publish("device.updated", made)
	require.Eventually(t, func() bool { return price() == 9 }, patience, 20*time.Millisecond, "%s has its old price", id)
	publish("device.deleted", made)
	require.Eventually(t, func() bool { return price() == 0 }, patience, 20*time.Millisecond, "%s is sold after it was deleted", id)
}
