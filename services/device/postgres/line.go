package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// Lines is where devices hear of what is booked: the stream and the subject of the
// service that sells air time.
const (
	LinesStream  = "ORDER"
	LinesSubject = "line.changed"
)

// LineChanged returns the handler of what is told about booked lines. read reads a
// payload, takedown makes the command for a showing that is taken down. Lines of
// devices that are unknown or deleted are nobody's.
func (s *Store) LineChanged(read func(payload []byte) (device.BookedLine, error), takedown func(deviceID, showingID string) (device.Command, error), now func() time.Time) events.Handler {
	return func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		l, err := read(e.Payload)
		if err == nil {
			err = l.Check()
		}
		if err != nil {
			return events.Permanent(fmt.Errorf("reading a booked line: %w", err))
		}
		q := s.q.WithTx(tx)
		known, err := lockForLines(ctx, q, l.DeviceID, len(l.TakenDown) > 0)
		if err != nil || !known {
			return err
		}
		row, err := q.Line(ctx, query.LineParams{DeviceID: l.DeviceID, LineID: l.ID})
		if err != nil && !none(err) {
			return err
		}
		var before device.BookedLine
		if err == nil {
			if before, err = lineOf(row); err != nil {
				return err
			}
		}
		c := lineChange{q: q, deviceID: l.DeviceID, now: now().UTC().Truncate(time.Microsecond)}
		switch {
		case l.Revision > before.Revision:
			err = c.put(ctx, before, l)
		case l.Revision < before.Revision:
			// What was taken down stays so, whatever came since.
			late := before
			late.TakenDown = slices.Concat(before.TakenDown, news(before, l.TakenDown))
			err = c.put(ctx, before, late)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		return c.tell(ctx, takedown)
	}
}

// PutLines implements device.Store.
func (s *Store) PutLines(ctx context.Context, deviceID string, lines []device.BookedLine, now time.Time, takedown func(deviceID, showingID string) (device.Command, error)) (changed int, err error) {
	err = s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		changed = 0
		known, err := lockForLines(ctx, q, deviceID, true)
		if err != nil {
			return err
		}
		if !known {
			return device.ErrNotFound
		}
		rows, err := q.Lines(ctx, deviceID)
		if err != nil {
			return err
		}
		left := make(map[string]device.BookedLine, len(rows))
		for _, row := range rows {
			if left[row.LineID], err = lineOf(row); err != nil {
				return err
			}
		}
		c := lineChange{q: q, deviceID: deviceID, now: now}
		for _, l := range lines {
			before, ok := left[l.ID]
			delete(left, l.ID)
			past := l.End.Before(now.Add(-device.LinesKept)) // Sweep removes it, or has
			if before.Revision > l.Revision || before.Equal(l) || !ok && (l.Removed || past) {
				continue
			}
			if !before.Removed || !l.Removed {
				changed++
			}
			if err := c.put(ctx, before, l); err != nil {
				return err
			}
		}
		for _, before := range left {
			if before.Removed || !before.End.After(now) {
				continue
			}
			changed++
			gone := before
			gone.Removed = true
			if err := c.put(ctx, before, gone); err != nil {
				return err
			}
		}
		return c.tell(ctx, takedown)
	})
	return changed, err
}

// lockForLines has the device for the transaction alone. Unknown are also those that
// were deleted. Its commands are counted before they become more, and the lock for
// that comes first, as with all that sends commands.
func lockForLines(ctx context.Context, q *query.Queries, deviceID string, commands bool) (known bool, err error) {
	organisationID, err := q.OrganisationOf(ctx, deviceID)
	if none(err) {
		return false, nil
	}
	if err == nil && commands {
		err = q.LockOrganisation(ctx, organisationID)
	}
	if err != nil {
		return false, err
	}
	row, err := q.LockDevice(ctx, query.LockDeviceParams{OrganisationID: organisationID, DeviceID: deviceID})
	return err == nil && row.Device.DeleteTime == nil, err
}

// lineChange is a change of what is booked on a device.
type lineChange struct {
	q        *query.Queries
	deviceID string
	now      time.Time
	// seen says that the playlist is another.
	seen      bool
	takenDown []string
}

// put stores a line.
func (c *lineChange) put(ctx context.Context, before, l device.BookedLine) error {
	p := query.PutLineParams{
		DeviceID: l.DeviceID, LineID: l.ID, Revision: l.Revision, FirstDate: dateOf(l.Flight.First), LastDate: dateOf(l.Flight.Last),
		Slots: make([]int32, len(l.Slots)), StartTime: l.Start, EndTime: l.End, Removed: l.Removed,
		TakenDown: append([]string{}, l.TakenDown...),
	}
	for i, slot := range l.Slots {
		p.Slots[i] = int32(slot)
	}
	dayparts := l.Dayparts
	if dayparts == nil {
		dayparts = []airtime.Opening{}
	}
	var err error
	if p.Dayparts, err = json.Marshal(dayparts); err != nil {
		return fmt.Errorf("writing the dayparts of %s: %w", l.ID, err)
	}
	if l.Showing != nil {
		if p.Showing, err = json.Marshal(l.Showing); err != nil {
			return fmt.Errorf("writing what %s shows: %w", l.ID, err)
		}
		// From now on plays of it can have been.
		if err := c.q.PutCreative(ctx, query.PutCreativeParams{DeviceID: l.DeviceID, CreativeID: l.Showing.CreativeID, DurationMs: int32(l.Showing.DurationMS)}); err != nil {
			return err
		}
	}
	c.seen = c.seen || !l.LooksLike(before)
	c.takenDown = append(c.takenDown, news(before, l.TakenDown)...)
	return c.q.PutLine(ctx, p)
}

// news are those of the showings that are taken down of which the device was not told.
func news(before device.BookedLine, takenDown []string) (ids []string) {
	for _, id := range takenDown {
		if !slices.Contains(before.TakenDown, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// tell has the player get what changed: the playlist, and commands to show no more
// what is taken down, if it was ever given that. When there are too many that it has
// not answered, the playlist alone says so.
func (c *lineChange) tell(ctx context.Context, takedown func(deviceID, showingID string) (device.Command, error)) error {
	if c.seen {
		if err := c.q.RaisePlaylist(ctx, query.RaisePlaylistParams{DeviceID: c.deviceID, UpdateTime: c.now}); err != nil {
			return err
		}
		if err := c.q.Notify(ctx, string(device.PlaylistChanged)+" "+c.deviceID); err != nil {
			return err
		}
	}
	if len(c.takenDown) == 0 {
		return nil
	}
	given, err := c.q.CreativesOf(ctx, query.CreativesOfParams{DeviceIds: []string{c.deviceID}, CreativeIds: c.takenDown})
	if err != nil || len(given) == 0 {
		return err
	}
	rows, err := c.q.CountOpenCommands(ctx, query.CountOpenCommandsParams{DeviceIds: []string{c.deviceID}, Now: c.now})
	if err != nil {
		return err
	}
	room := int64(device.MaxOpenCommands)
	for _, r := range rows {
		room -= r.Commands
	}
	for _, showing := range given[:max(0, min(len(given), int(room)))] {
		command, err := takedown(c.deviceID, showing.CreativeID)
		if err != nil {
			return err
		}
		p := insertion(command.Kind, command.Duration, command.CreativeID, command.CreateTime, command.ExpireTime)
		p.CommandIds, p.DeviceIds, p.Results = []string{command.ID}, []string{c.deviceID}, []string{""}
		if err := insertCommands(ctx, c.q, p); err != nil {
			return err
		}
	}
	return c.q.Notify(ctx, string(device.CommandSent)+" "+c.deviceID)
}

func dateOf(d airtime.Date) pgtype.Date { return pgtype.Date{Time: d.Midnight(), Valid: true} }

func lineOf(r query.BookedLine) (device.BookedLine, error) {
	l := device.BookedLine{
		ID: r.LineID, DeviceID: r.DeviceID, Revision: r.Revision,
		Flight: airtime.Flight{First: airtime.DateOf(r.FirstDate.Time, time.UTC), Last: airtime.DateOf(r.LastDate.Time, time.UTC)},
		Start:  r.StartTime.UTC(), End: r.EndTime.UTC(), Removed: r.Removed, TakenDown: r.TakenDown,
	}
	for _, slot := range r.Slots {
		l.Slots = append(l.Slots, int(slot))
	}
	if err := json.Unmarshal(r.Dayparts, &l.Dayparts); err != nil {
		return device.BookedLine{}, fmt.Errorf("reading the dayparts of %s: %w", r.LineID, err)
	}
	if r.Showing != nil {
		l.Showing = new(device.Item)
		if err := json.Unmarshal(r.Showing, l.Showing); err != nil {
			return device.BookedLine{}, fmt.Errorf("reading what %s shows: %w", r.LineID, err)
		}
	}
	return l, nil
}

// ListLines implements device.Store.
func (s *Store) ListLines(ctx context.Context, deviceIDs []string, after device.LinePosition, limit int) ([]device.BookedLine, error) {
	var rows []query.BookedLine
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.ListLines(ctx, query.ListLinesParams{DeviceIds: deviceIDs, AfterDevice: after.DeviceID, AfterLine: after.LineID, AtMost: int32(limit)})
		return err
	})
	if err != nil {
		return nil, err
	}
	found := make([]device.BookedLine, len(rows))
	for i, row := range rows {
		if found[i], err = lineOf(row); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// sumHours is of about how many hours one query sums plays: it has to be done before
// the database gives up.
const sumHours = 50_000

// SumPlays implements device.Store.
func (s *Store) SumPlays(ctx context.Context, lines []device.LinePeriod, byDay bool) (sums []device.LinePlays, err error) {
	for len(lines) > 0 {
		n, hours := 0, 0.0
		for n < len(lines) && (n == 0 || hours < sumHours) {
			hours += lines[n].Span.To.Sub(lines[n].Span.From).Hours()
			n++
		}
		some, err := s.sumPlays(ctx, lines[:n], byDay)
		if err != nil {
			return nil, err
		}
		sums, lines = append(sums, some...), lines[n:]
	}
	return sums, nil
}

func (s *Store) sumPlays(ctx context.Context, lines []device.LinePeriod, byDay bool) ([]device.LinePlays, error) {
	p := query.SumPlaysParams{ByDay: byDay}
	for i, l := range lines {
		p.Places, p.DeviceIds, p.LineIds = append(p.Places, int32(i)), append(p.DeviceIds, l.DeviceID), append(p.LineIds, l.LineID)
		p.FromTimes, p.ToTimes = append(p.FromTimes, l.Span.From), append(p.ToTimes, l.Span.To)
	}
	var rows []query.SumPlaysRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.SumPlays(ctx, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	sums := make([]device.LinePlays, len(rows))
	for i, r := range rows {
		sums[i] = device.LinePlays{LineID: lines[r.Place].LineID, Plays: r.Plays, Counted: r.Counted, Duration: time.Duration(r.DurationMs) * time.Millisecond}
		if r.Day == "" {
			continue
		}
		if sums[i].Day, err = airtime.ParseDate(r.Day); err != nil {
			return nil, fmt.Errorf("reading a sum of plays: %w", err)
		}
	}
	return sums, nil
}
