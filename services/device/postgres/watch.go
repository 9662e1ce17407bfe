package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// Statuses implements device.WatchStore.
func (s *Store) Statuses(ctx context.Context, organisationID string, ids []string, before string, limit int) ([]device.Status, error) {
	if ids == nil {
		ids = []string{} // NULL has no length
	}
	var rows []query.StatusesRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Statuses(ctx, query.StatusesParams{OrganisationID: organisationID, DeviceIds: ids, Before: before, AtMost: int32(limit)})
		return err
	})
	found := make([]device.Status, len(rows))
	for i, r := range rows {
		found[i] = statusOf(r)
	}
	return found, err
}

// ChangedStatuses implements device.WatchStore.
func (s *Store) ChangedStatuses(ctx context.Context, organisationIDs, ids []string) ([]device.Status, error) {
	var rows []query.ChangedStatusesRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.ChangedStatuses(ctx, query.ChangedStatusesParams{OrganisationIds: organisationIDs, DeviceIds: ids})
		return err
	})
	found := make([]device.Status, len(rows))
	for i, r := range rows {
		found[i] = statusOf(query.StatusesRow(r))
	}
	return found, err
}

func statusOf(r query.StatusesRow) device.Status {
	return device.Status{
		DeviceID: r.DeviceID, OrganisationID: r.OrganisationID, Name: r.Name, State: stateOf(r.Claimed, r.RevokeTime),
		Presence:        presenceOf(r.Online, r.ConnectTime, r.DisconnectTime, r.SeenTime),
		PlaylistVersion: r.PlaylistVersion, Revision: r.Revision, Deleted: r.DeleteTime != nil,
	}
}

// KeepWatched implements device.WatchStore.
func (s *Store) KeepWatched(ctx context.Context, organisationIDs []string) error {
	return s.db.Call(ctx, func(ctx context.Context) error {
		return s.q.KeepWatched(ctx, query.KeepWatchedParams{OrganisationIds: organisationIDs, Seconds: device.WatchedFor.Seconds()})
	})
}

// Instances implements device.WatchStore.
func (s *Store) Instances(ctx context.Context) (map[string]time.Duration, error) {
	var rows []query.InstancesRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Instances(ctx)
		return err
	})
	found := make(map[string]time.Duration, len(rows))
	for _, r := range rows {
		found[r.InstanceID] = time.Duration(r.LeftUs) * time.Microsecond
	}
	return found, err
}

// TellDisconnected implements device.PlaneStore.
func (s *Store) TellDisconnected(ctx context.Context, deviceIDs []string) error {
	changes := make([]string, len(deviceIDs))
	for i, id := range deviceIDs {
		changes[i] = string(device.Disconnected) + " " + id
	}
	return s.db.Call(ctx, func(ctx context.Context) error { return s.q.NotifyAll(ctx, changes) })
}

// PlayersAt implements device.WatchStore.
func (s *Store) PlayersAt(ctx context.Context, organisationIDs, instanceIDs []string) (ids []string, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		ids, err = s.q.PlayersAt(ctx, query.PlayersAtParams{InstanceIds: instanceIDs, OrganisationIds: organisationIDs})
		return err
	})
	return ids, err
}

// maxNote is how long the payload of a NOTIFY may be, in bytes.
const maxNote = 7999

// tellPlays tells all instances of those plays that were added and whose device is
// one of an organisation that is watched; watched has it by device.
func tellPlays(ctx context.Context, q *query.Queries, plays []device.Play, added map[device.PlayKey]bool, watched map[string]string) error {
	if len(watched) == 0 {
		return nil
	}
	told := make(map[device.PlayKey]bool)
	by := make(map[string][]device.Play) // by organisation
	for _, p := range plays {
		key := device.PlayKey{DeviceID: p.DeviceID, PlayID: p.ID}
		if organisation, ok := watched[p.DeviceID]; ok && added[key] && !told[key] {
			told[key] = true
			by[organisation] = append(by[organisation], p)
		}
	}
	var notes []string
	for organisation, of := range by {
		notes = append(notes, playNotes(organisation, of)...)
	}
	if len(notes) == 0 {
		return nil
	}
	return q.NotifyAll(ctx, notes)
}

// playNotes are plays as instances tell each other: as many to a note as fit.
func playNotes(organisationID string, plays []device.Play) (notes []string) {
	var (
		note strings.Builder
		of   string // the device that the note has last named
	)
	begin := string(device.PlaysStored) + " " + organisationID
	for _, p := range plays {
		counted := "0"
		if p.Counted {
			counted = "1"
		}
		word := fmt.Sprintf(" %s,%s,%d,%s", p.ID, p.CreativeID, p.Duration.Milliseconds(), counted)
		if note.Len()+len(p.DeviceID)+1+len(word) > maxNote {
			notes = append(notes, note.String())
			note.Reset()
		}
		if note.Len() == 0 {
			note.WriteString(begin)
			of = ""
		}
		if p.DeviceID != of {
			of = p.DeviceID
			note.WriteString(" " + of)
		}
		note.WriteString(word)
	}
	if note.Len() > 0 {
		notes = append(notes, note.String())
	}
	return notes
}

// playsOf reads what playNotes wrote, behind the organisation.
func playsOf(words []string) []device.Play {
	plays := make([]device.Play, 0, len(words))
	of := ""
	for _, word := range words {
		parts := strings.Split(word, ",")
		if len(parts) == 1 {
			of = word
			continue
		}
		if len(parts) != 4 {
			continue
		}
		id, err := ulid.ParseStrict(parts[0])
		duration, err2 := strconv.ParseInt(parts[2], 10, 64)
		if err != nil || err2 != nil {
			continue
		}
		plays = append(plays, device.Play{
			DeviceID: of, ID: parts[0], CreativeID: parts[1], Start: id.Timestamp().UTC(),
			Duration: time.Duration(duration) * time.Millisecond, Counted: parts[3] == "1",
		})
	}
	return plays
}
