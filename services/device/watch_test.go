package device_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
)

const (
	another  = "org_01BX5ZZKBKACTAV9WEVGEMMVRZ"
	patience = 10 * time.Second
)

// watched is a service with instances.
type watched struct {
	*device.Service
	store  *postgres.Store
	db     *database.Database
	planes []*device.Plane
}

func newWatched(tb testing.TB, instances int) *watched {
	tb.Helper()
	store, db := postgrestest.New(tb, &pg)
	w := &watched{Service: device.New(store, device.DefaultThrottle(), time.Now, rand.Reader), store: store, db: db}
	ctx, cancel := context.WithCancel(tb.Context())
	var running sync.WaitGroup
	for n := range instances {
		p := device.NewPlane(store, fmt.Sprint("instance-", n), time.Now, hclog.NewNullLogger())
		w.planes = append(w.planes, p)
		running.Go(func() { _ = p.Run(ctx) })
	}
	tb.Cleanup(func() { cancel(); running.Wait() })
	return w
}

// create makes a device that plays "c".
func (w *watched) create(tb testing.TB, organisationID, name string) device.Device {
	tb.Helper()
	s := settings()
	s.Name = name
	made, err := w.Create(tb.Context(), "acc_1", "request-"+name, organisationID, s)
	require.NoError(tb, err)
	_, err = w.PutPlaylist(tb.Context(), organisationID, made.ID, []device.Item{{CreativeID: "c", DurationMS: 10000}})
	require.NoError(tb, err)
	return made
}

// claim lets a player in.
func (w *watched) claim(t *testing.T, d device.Device) device.Credentials {
	t.Helper()
	code, _, err := w.CreateClaimCode(t.Context(), d.OrganisationID, d.ID)
	require.NoError(t, err)
	credentials, err := w.Claim(t.Context(), code, "")
	require.NoError(t, err)
	return credentials
}

// handIn hands in so many plays of a device at an instance, in one batch.
func (w *watched) handIn(tb testing.TB, at int, deviceID string, plays int) {
	tb.Helper()
	all := make([]string, plays)
	for n := range all {
		all[n] = fmt.Sprintf(`{"id":%q,"creative_id":"c","duration_ms":10000}`, ulid.Make())
	}
	err := w.planes[at].Received(tb.Context(), &silent{id: "hands in", device: deviceID}, device.ChannelPlays, fmt.Appendf(nil, `{"plays":[%s]}`, strings.Join(all, ",")))
	require.NoError(tb, err)
}

// seen is a watch under way.
type seen struct {
	events chan device.Event
	cut    chan error
	done   chan error
	leave  context.CancelFunc
}

// watch begins one at an instance, which may only just have started. read is called
// with each event before it is put in events.
func (w *watched) watch(t *testing.T, at int, organisationID string, ids []string, read func(device.Event)) *seen {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &seen{events: make(chan device.Event, 100_000), cut: make(chan error, 10), done: make(chan error, 1), leave: cancel}
	until := time.Now().Add(patience)
	go func() {
		for began := false; ; {
			err := w.planes[at].Watches().Watch(ctx, organisationID, ids, func(e device.Event) error {
				began = true
				if read != nil {
					read(e)
				}
				s.events <- e
				return ctx.Err()
			}, func(why error) { s.cut <- why })
			if began || ctx.Err() != nil || !errors.Is(err, device.ErrWatchInterrupted) || time.Now().After(until) {
				s.done <- err
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-s.done:
		case <-time.After(patience):
			t.Error("a watch does not end")
		}
	})
	return s
}

// next is the next event for which want is true; it fails when a watch ends before.
func (s *seen) next(t *testing.T, what string, want func(device.Event) bool) device.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-s.events:
			if want(e) {
				return e
			}
		case err := <-s.done:
			s.done <- err
			t.Fatalf("the watch ended before %s: %v", what, err)
		case <-timeout:
			t.Fatalf("no word within %s: %s", patience, what)
		}
	}
}

func (s *seen) complete(t *testing.T) {
	t.Helper()
	s.next(t, "the end of the snapshot", func(e device.Event) bool { return e.Complete })
}

// status waits for one of a device.
func (s *seen) status(t *testing.T, what string, want func(device.Status) bool) device.Status {
	t.Helper()
	return *s.next(t, what, func(e device.Event) bool { return e.Status != nil && want(*e.Status) }).Status
}

// ends waits for the end of the watch.
func (s *seen) ends(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.done:
		s.done <- err
		return err
	case <-time.After(patience):
		t.Fatal("the watch goes on")
		return nil
	}
}

// TestWatch has players at one instance, and who watches them at another.
func TestWatch(t *testing.T) {
	w := newWatched(t, 2)
	d := w.create(t, organisation, "one")
	w.create(t, another, "theirs")
	watch := w.watch(t, 1, organisation, nil, func(e device.Event) {
		if e.Status != nil && e.Status.OrganisationID != organisation {
			t.Errorf("somebody else's device is told: %+v", e)
		}
	})
	first := watch.status(t, "the device", func(device.Status) bool { return true })
	require.Equal(t, device.Status{DeviceID: d.ID, OrganisationID: organisation, Name: "one", State: device.Unclaimed, PlaylistVersion: 1, Revision: 1}, first)
	watch.complete(t)

	credentials := w.claim(t, d)
	watch.status(t, "it is claimed", func(s device.Status) bool { return s.State == device.Claimed })
	pass, err := w.planes[0].Admit(t.Context(), d.ID, credentials.Secret)
	require.NoError(t, err)
	session := &silent{id: "session", device: d.ID}
	w.planes[0].Connected(t.Context(), pass, session)
	online := watch.status(t, "it is connected", func(s device.Status) bool { return s.Presence.Online })
	found, err := w.Find(t.Context(), organisation, d.ID)
	require.NoError(t, err)
	require.Equal(t, found.Presence, online.Presence)

	_, err = w.PutPlaylist(t.Context(), organisation, d.ID, nil)
	require.NoError(t, err)
	watch.status(t, "its playlist changed", func(s device.Status) bool { return s.PlaylistVersion == 2 })

	w.handIn(t, 0, d.ID, 150)
	total := make(map[string]bool)
	for len(total) < 150 {
		for _, p := range watch.next(t, "its plays", func(e device.Event) bool { return len(e.Plays) > 0 }).Plays {
			require.Equal(t, [3]any{d.ID, "c", true}, [3]any{p.DeviceID, p.CreativeID, p.Counted})
			require.Equal(t, 10*time.Second, p.Duration)
			require.WithinDuration(t, time.Now(), p.Start, time.Minute)
			require.False(t, total[p.ID], "told twice")
			total[p.ID] = true
		}
	}

	w.planes[0].Disconnected(t.Context(), session)
	offline := watch.status(t, "it is gone", func(s device.Status) bool { return !s.Presence.Online })
	found, err = w.Find(t.Context(), organisation, d.ID)
	require.NoError(t, err)
	require.Equal(t, found.Presence, offline.Presence)

	changed := settings()
	changed.Name = "uno"
	_, err = w.Update(t.Context(), organisation, d.ID, changed, 0)
	require.NoError(t, err)
	watch.status(t, "it has another name", func(s device.Status) bool { return s.Name == "uno" && s.Revision == 2 })
	made := w.create(t, organisation, "two")
	watch.status(t, "another was made", func(s device.Status) bool { return s.DeviceID == made.ID })
	w.create(t, another, "theirs, too")
	require.NoError(t, w.Delete(t.Context(), organisation, d.ID))
	watch.status(t, "it was deleted", func(s device.Status) bool { return s.DeviceID == d.ID && s.Deleted })

	watch.leave()
	require.ErrorIs(t, watch.ends(t), context.Canceled)
}

// TestWatchSome watches some devices by their ids.
func TestWatchSome(t *testing.T) {
	w := newWatched(t, 1)
	mine, other, theirs := w.create(t, organisation, "mine"), w.create(t, organisation, "other"), w.create(t, another, "theirs")
	watch := w.watch(t, 0, organisation, []string{mine.ID}, func(e device.Event) {
		for _, p := range e.Plays {
			if p.DeviceID != mine.ID {
				t.Errorf("a play of another device is told: %+v", p)
			}
		}
		if e.Status != nil && e.Status.DeviceID != mine.ID {
			t.Errorf("another device is told: %+v", e.Status)
		}
	})
	watch.complete(t)
	for _, d := range []device.Device{other, mine} {
		_, err := w.PutPlaylist(t.Context(), organisation, d.ID, nil)
		require.NoError(t, err)
		w.handIn(t, 0, d.ID, 1)
	}
	changed, played := false, false
	watch.next(t, "its playlist, and its play", func(e device.Event) bool {
		changed, played = changed || e.Status != nil && e.Status.PlaylistVersion == 2, played || len(e.Plays) == 1
		return changed && played
	})
	watch.leave()
	require.Error(t, watch.ends(t))

	require.NoError(t, w.Delete(t.Context(), organisation, other.ID))
	for name, ids := range map[string][]string{
		"ErrTheirs":  {mine.ID, theirs.ID},
		"ErrDeleted": {other.ID},
		"ErrUnknown": {"dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"},
	} {
		t.Run(name, func(t *testing.T) {
			watch := w.watch(t, 0, organisation, ids, nil)
			require.ErrorIs(t, watch.ends(t), device.ErrNotFound)
			require.Empty(t, watch.events, "something of it is told")
		})
	}
}

// TestWatchInstanceDies has an instance that says nothing any more, and then does
// again: the watch says when GetDevice does.
func TestWatchInstanceDies(t *testing.T) {
	w := newWatched(t, 1)
	d := w.create(t, organisation, "one")
	require.NoError(t, w.store.SeeInstance(t.Context(), "dead"))
	last := time.Now()
	require.NoError(t, w.store.Connect(t.Context(), "dead", []device.Connection{{DeviceID: d.ID, ID: "c", Time: time.Now()}}))
	watch := w.watch(t, 0, organisation, nil, nil)
	watch.status(t, "it is connected", func(s device.Status) bool { return s.Presence.Online })
	watch.complete(t)
	told := watch.status(t, "its instance died", func(s device.Status) bool { return !s.Presence.Online })
	took := time.Since(last)
	t.Logf("told %s after the instance was last seen", took.Round(time.Millisecond))
	require.Greater(t, took, 4900*time.Millisecond, "it was still believed")
	require.Less(t, took, 6*time.Second)
	found, err := w.Find(t.Context(), organisation, d.ID)
	require.NoError(t, err)
	require.Equal(t, found.Presence, told.Presence)

	require.NoError(t, w.store.SeeInstance(t.Context(), "dead"))
	watch.status(t, "its instance came back", func(s device.Status) bool { return s.Presence.Online })
}

// TestWatchSlowReader has one who does not read: it is ended, and nobody else
// notices.
func TestWatchSlowReader(t *testing.T) {
	w := newWatched(t, 2)
	d := w.create(t, organisation, "one")
	stuck := make(chan struct{})
	slow := w.watch(t, 1, organisation, nil, func(e device.Event) {
		if e.Plays != nil {
			<-stuck
		}
	})
	quick := w.watch(t, 1, organisation, nil, nil)
	slow.complete(t)
	quick.complete(t)
	const batches, size = 60, device.MaxBatch
	for range batches {
		w.handIn(t, 0, d.ID, size)
	}
	for told := 0; told < batches*size; {
		told += len(quick.next(t, "plays", func(e device.Event) bool { return e.Plays != nil }).Plays)
	}
	select {
	case why := <-slow.cut:
		require.ErrorIs(t, why, device.ErrWatchBehind)
	case <-time.After(patience):
		t.Fatal("a reader that does not read is not ended")
	}
	close(stuck)
	require.ErrorIs(t, slow.ends(t), device.ErrWatchBehind)
	require.Less(t, len(slow.events), batches, "it was told what it had fallen behind of")
	_, err := w.PutPlaylist(t.Context(), organisation, d.ID, nil)
	require.NoError(t, err)
	quick.status(t, "the next change", func(s device.Status) bool { return s.PlaylistVersion == 2 })
	require.Empty(t, quick.cut)
}

// TestWatchInterrupted takes away what changes are heard on.
func TestWatchInterrupted(t *testing.T) {
	w := newWatched(t, 1)
	d := w.create(t, organisation, "one")
	watch := w.watch(t, 0, organisation, nil, nil)
	watch.complete(t)
	_, err := w.db.Pool().Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN device' AND datname = current_database()")
	require.NoError(t, err)
	_, err = w.PutPlaylist(t.Context(), organisation, d.ID, nil)
	require.NoError(t, err)
	require.ErrorIs(t, watch.ends(t), device.ErrWatchInterrupted)

	again := w.watch(t, 0, organisation, nil, nil)
	again.status(t, "what was missed", func(s device.Status) bool { return s.PlaylistVersion == 2 })
	again.complete(t)
	w.planes[0].Watches().Stop()
	require.ErrorIs(t, again.ends(t), device.ErrWatchInterrupted)
	err = w.planes[0].Watches().Watch(t.Context(), organisation, nil, func(device.Event) error { return nil }, nil)
	require.ErrorIs(t, err, device.ErrWatchInterrupted)
}

// TestWatchMany opens as many as one organisation may.
func TestWatchMany(t *testing.T) {
	w := newWatched(t, 1)
	var open []*seen
	for range 20 {
		watch := w.watch(t, 0, organisation, nil, nil)
		watch.complete(t)
		open = append(open, watch)
	}
	require.ErrorIs(t, w.watch(t, 0, organisation, nil, nil).ends(t), device.ErrTooManyWatches)
	w.watch(t, 0, another, nil, nil).complete(t)
	open[7].leave()
	require.Error(t, open[7].ends(t))
	w.watch(t, 0, organisation, nil, nil).complete(t)
}

// TestWatchNothingIsMissed begins watches while devices change: each of them ends
// up with what is so, and is never told what was so before that.
func TestWatchNothingIsMissed(t *testing.T) {
	w := newWatched(t, 2)
	const devices, changes, watches = 5, 60, 15
	var all []device.Device
	for n := range devices {
		all = append(all, w.create(t, organisation, fmt.Sprint("device-", n)))
	}
	var changing sync.WaitGroup
	for _, d := range all {
		changing.Go(func() {
			for n := range changes {
				if _, err := w.PutPlaylist(t.Context(), organisation, d.ID, []device.Item{{CreativeID: fmt.Sprint("c", n), DurationMS: 1000}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var (
		mu   sync.Mutex
		last = make([]map[string]int64, watches)
	)
	for n := range watches {
		last[n] = make(map[string]int64)
		w.watch(t, n%2, organisation, nil, func(e device.Event) {
			if e.Status == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if before := last[n][e.Status.DeviceID]; e.Status.PlaylistVersion < before {
				t.Errorf("version %d is told after %d", e.Status.PlaylistVersion, before)
			}
			last[n][e.Status.DeviceID] = e.Status.PlaylistVersion
		}).complete(t)
	}
	changing.Wait()
	for n := range watches {
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return !slices.ContainsFunc(all, func(d device.Device) bool { return last[n][d.ID] != 1+changes })
		}, patience, 10*time.Millisecond, "watch %d does not learn of the last changes", n)
	}
}

// TestPlaysAreToldWhileWatched: nobody is told of plays that nobody watches.
func TestPlaysAreToldWhileWatched(t *testing.T) {
	w := newWatched(t, 1)
	mine, theirs := w.create(t, organisation, "mine"), w.create(t, another, "theirs")
	conn, err := w.db.Pool().Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "LISTEN device")
	require.NoError(t, err)
	// told are the notes of plays until one about a mark.
	told := func(mark string) (notes []string) {
		t.Helper()
		_, err := w.db.Pool().Exec(t.Context(), "SELECT pg_notify('device', $1)", "mark "+mark)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for {
			note, err := conn.Conn().WaitForNotification(ctx)
			require.NoError(t, err)
			if note.Payload == "mark "+mark {
				return notes
			}
			if strings.HasPrefix(note.Payload, "plays ") {
				notes = append(notes, note.Payload)
			}
		}
	}
	w.handIn(t, 0, mine.ID, 100)
	require.Empty(t, told("before"))
	watch := w.watch(t, 0, organisation, nil, nil)
	watch.complete(t)
	w.handIn(t, 0, theirs.ID, 100)
	require.Empty(t, told("theirs"))
	w.handIn(t, 0, mine.ID, 200)
	notes := told("mine")
	require.NotEmpty(t, notes)
	for _, note := range notes {
		require.True(t, strings.HasPrefix(note, "plays "+organisation+" "+mine.ID+" "), note)
	}
	watch.leave()
	require.Error(t, watch.ends(t))
	_, err = w.db.Pool().Exec(t.Context(), "UPDATE watches SET expire_time = now()")
	require.NoError(t, err)
	w.handIn(t, 0, mine.ID, 100)
	require.Empty(t, told("after"))
}

// BenchmarkPlaysWatched is BenchmarkPlays while somebody watches all of it.
func BenchmarkPlaysWatched(b *testing.B) {
	w := newWatched(b, 1)
	const players, batch = 50, 100
	ids := make([]string, players)
	for n := range ids {
		ids[n] = w.create(b, organisation, fmt.Sprint("device-", n)).ID
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended, began := make(chan error, 1), make(chan struct{})
	var told int
	go func() {
		for {
			err := w.planes[0].Watches().Watch(ctx, organisation, nil, func(e device.Event) error {
				if e.Complete {
					close(began)
				}
				told += len(e.Plays)
				return nil
			}, func(error) {})
			if !errors.Is(err, device.ErrWatchInterrupted) {
				ended <- err
				return
			}
		}
	}()
	<-began
	stored := 0
	for b.Loop() {
		var all sync.WaitGroup
		for _, id := range ids {
			all.Go(func() { w.handIn(b, 0, id, batch) })
		}
		all.Wait()
		stored += players * batch
	}
	b.ReportMetric(float64(stored)/b.Elapsed().Seconds(), "plays/s")
	cancel()
	require.ErrorIs(b, <-ended, context.Canceled)
	b.ReportMetric(float64(told)/float64(stored), "told/stored")
}
