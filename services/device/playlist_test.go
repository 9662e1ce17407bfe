package device_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
)

// message is a playlist as players get it.
type message struct {
	Version  int64           `json:"version"`
	Items    []device.Item   `json:"items"`
	Schedule []device.Period `json:"schedule"`
}

// playlists are those that a player was sent.
func (s *silent) playlists(t *testing.T) (all []message) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.sent {
		var m message
		require.NoError(t, json.Unmarshal([]byte(text), &m))
		require.NotNil(t, m.Schedule, "a schedule is missing: %s", text)
		all = append(all, m)
	}
	return all
}

// waitFor returns the last of so many playlists.
func (s *silent) waitFor(t *testing.T, count int, within time.Duration) message {
	t.Helper()
	require.Eventually(t, func() bool { return len(s.playlists(t)) >= count }, within, 5*time.Millisecond, "the playlist does not come")
	all := s.playlists(t)
	require.Len(t, all, count, "a playlist comes that nothing is new about")
	return all[count-1]
}

func (m message) until() time.Time { return m.Schedule[len(m.Schedule)-1].Until }

// TestSchedules has players stay connected while the hours go by, and their settings
// change.
func TestSchedules(t *testing.T) {
	store, db := postgrestest.New(t, &pg)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	now := &clock{at: time.Date(2026, 10, 24, 9, 30, 0, 0, time.UTC)} // a Saturday
	const players = 300
	ctx, cancel := context.WithCancel(t.Context())
	plane := device.NewPlane(store, "one", now.now, hclog.NewNullLogger())
	var running sync.WaitGroup
	running.Go(func() { _ = plane.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	var sessions []*silent
	for n := range players {
		made, err := s.Create(t.Context(), "acc_1", fmt.Sprint("request-", n), organisation, settings())
		require.NoError(t, err)
		code, _, err := s.CreateClaimCode(t.Context(), organisation, made.ID)
		require.NoError(t, err)
		c, err := s.Claim(t.Context(), code, "")
		require.NoError(t, err)
		if n > 0 { // one has nothing to play
			_, err = s.PutPlaylist(t.Context(), organisation, made.ID, []device.Item{{CreativeID: "a", DurationMS: 10000}, {CreativeID: "b", DurationMS: 5000}})
			require.NoError(t, err)
		}
		pass, err := plane.Admit(t.Context(), made.ID, c.Secret)
		require.NoError(t, err)
		session := &silent{id: fmt.Sprint("session-", n), device: made.ID}
		plane.Connected(t.Context(), pass, session)
		plane.Listens(t.Context(), session, device.ChannelPlaylist)
		sessions = append(sessions, session)
	}
	last := sessions[players-1]
	first := last.waitFor(t, 1, time.Second)
	require.Equal(t, []device.Period{{From: time.Date(2026, 10, 24, 8, 0, 0, 0, time.UTC), Until: time.Date(2026, 10, 25, 16, 0, 0, 0, time.UTC), Loop: []int{0, 1}}}, first.Schedule)

	t.Run("LaterOnesComeInTime", func(t *testing.T) {
		// extended are the players that have more than their first.
		extended := func() (n int) {
			for _, session := range sessions[1:] {
				if len(session.playlists(t)) > 1 {
					n++
				}
			}
			return n
		}
		now.forward(time.Hour - time.Second)
		require.Never(t, func() bool { return extended() > 0 }, 3*time.Second, 100*time.Millisecond, "it is not an hour yet")
		now.forward(time.Hour / 2)
		require.Eventually(t, func() bool { return extended() > players/3 }, 10*time.Second, 20*time.Millisecond, "too few")
		require.Never(t, func() bool { return extended() > players*2/3 }, 3*time.Second, 100*time.Millisecond, "they come to all at once")
		for range 4 {
			now.forward(2 * time.Hour)
			want := now.now().Truncate(time.Hour).Add(31 * time.Hour)
			require.Eventually(t, func() bool {
				for _, session := range sessions[1:] {
					if all := session.playlists(t); !all[len(all)-1].until().Equal(want) {
						return false
					}
				}
				return true
			}, 10*time.Second, 20*time.Millisecond, "a player waits for longer than two hours")
		}
		for _, session := range sessions[1:] {
			for _, m := range session.playlists(t) {
				require.Equal(t, first.Items, m.Items)
				require.Equal(t, first.Version, m.Version)
			}
		}
		require.Empty(t, sessions[0].playlists(t), "it has none")
	})

	update := func(change func(*device.Settings)) {
		t.Helper()
		found, err := s.Find(t.Context(), organisation, last.device)
		require.NoError(t, err)
		change(&found.Settings)
		_, err = s.Update(t.Context(), organisation, last.device, found.Settings, 0)
		require.NoError(t, err)
	}
	count := len(last.playlists(t))
	t.Run("HoursChange", func(t *testing.T) {
		require.Equal(t, time.Date(2026, 10, 24, 18, 59, 59, 0, time.UTC), now.now())
		began := time.Now()
		update(func(o *device.Settings) { o.Hours = []airtime.Opening{{Weekday: 7, Open: 480, Close: 1200}} })
		count++
		m := last.waitFor(t, count, time.Second)
		t.Logf("other hours came after %s", time.Since(began))
		require.Equal(t, first.Version, m.Version)
		require.Equal(t, []device.Period{{From: time.Date(2026, 10, 25, 8, 0, 0, 0, time.UTC), Until: time.Date(2026, 10, 25, 20, 0, 0, 0, time.UTC), Loop: []int{0, 1}}}, m.Schedule)
		update(func(o *device.Settings) { o.TimeZone = "Europe/Berlin" })
		count++
		m = last.waitFor(t, count, time.Second)
		require.Equal(t, time.Date(2026, 10, 25, 7, 0, 0, 0, time.UTC), m.Schedule[0].From, "it was still summer the day before")
		update(func(o *device.Settings) { o.Hours = []airtime.Opening{{Weekday: 3, Open: 480, Close: 1200}} })
		count++
		require.Empty(t, last.waitFor(t, count, time.Second).Schedule, "there is no opening in the next 30 hours")
	})
	t.Run("NothingToShow", func(t *testing.T) {
		_, err := s.PutPlaylist(t.Context(), organisation, last.device, nil)
		require.NoError(t, err)
		count++
		m := last.waitFor(t, count, time.Second)
		require.Equal(t, first.Version+1, m.Version)
		update(func(o *device.Settings) { o.Hours = nil })
		count++
		m = last.waitFor(t, count, time.Second)
		require.Len(t, m.Schedule, 1)
		require.Equal(t, []int{}, m.Schedule[0].Loop)
	})
	t.Run("ChangesThatWereMissed", func(t *testing.T) {
		_, err := db.Pool().Exec(t.Context(), "UPDATE devices SET time_zone = 'Asia/Tokyo', hours = '[{\"weekday\":1,\"open\":0,\"close\":60}]', revision = revision + 1 WHERE device_id = $1", last.device)
		require.NoError(t, err)
		_, err = db.Pool().Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		require.NoError(t, err)
		count++
		m := last.waitFor(t, count, 15*time.Second)
		require.Equal(t, time.Date(2026, 10, 25, 15, 0, 0, 0, time.UTC), m.Schedule[0].From)
	})
	for _, session := range sessions {
		require.Empty(t, session.ended())
	}
}

// TestProgrammesAreRead asks for many at once, also for what is not there.
func TestProgrammesAreRead(t *testing.T) {
	store, _ := postgrestest.New(t, &pg)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	var ids []string
	for n := range 3 {
		o := settings()
		o.Hours = []airtime.Opening{{Weekday: 1 + n, Open: 60, Close: 120}}
		made, err := s.Create(t.Context(), "acc_1", fmt.Sprint("request-", n), organisation, o)
		require.NoError(t, err)
		ids = append(ids, made.ID)
	}
	for range 2 {
		for n, id := range ids[:2] {
			_, err := s.PutPlaylist(t.Context(), organisation, id, []device.Item{{CreativeID: fmt.Sprint(n), DurationMS: 1000}})
			require.NoError(t, err)
		}
	}
	found, err := store.Programmes(t.Context(), append(ids, "dev_unknown"), time.Now())
	require.NoError(t, err)
	require.Len(t, found, 2)
	for n, id := range ids[:2] {
		require.Equal(t, []device.Item{{CreativeID: fmt.Sprint(n), DurationMS: 1000}}, found[id].Items)
		require.Equal(t, []airtime.Opening{{Weekday: 1 + n, Open: 60, Close: 120}}, found[id].Hours)
		require.Equal(t, "UTC", found[id].TimeZone)
		require.Equal(t, device.Edition{Version: 1, Revision: 1}, found[id].Edition)
	}
	editions, err := store.Editions(t.Context(), append(ids, "dev_unknown"))
	require.NoError(t, err)
	require.Equal(t, map[string]device.Edition{ids[0]: {Version: 1, Revision: 1}, ids[1]: {Version: 1, Revision: 1}}, editions)
}
