package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// lineChanged is the subject of events about lines.
const lineChanged = "line.changed"

// tell makes it part of the transaction that displays hear of booked lines: what they
// show now, or that they are not booked any more. Lines that were not booked are left
// out, and so are those that show what they did, when their display knows them, and
// those that are over. It is called after everything that it depends on was changed:
// it locks the lines, and waits for who else tells of them.
func (w work) tell(ctx context.Context, now time.Time, lineIDs ...string) error {
	if len(lineIDs) == 0 {
		return nil
	}
	if err := w.later.LockLinesToTell(ctx, lineIDs); err != nil {
		return err
	}
	// A statement of its own: while the one before waited, somebody else may have changed
	// what this reads.
	rows, err := w.LinesToTell(ctx, lineIDs)
	if err != nil {
		return err
	}
	var (
		told query.TellLinesParams
		list []events.Event
	)
	for _, row := range rows {
		next, changed := nextOf(row, now)
		if !changed {
			continue
		}
		line, err := bookedLineOf(row, next)
		if err != nil {
			return err
		}
		line.Revision++
		payload, err := w.store.payload(line)
		if err != nil {
			return err
		}
		list = append(list, events.Event{Subject: lineChanged, Key: line.DeviceID, Payload: payload})
		told.LineIds = append(told.LineIds, line.LineID)
		told.ShownCreativeIds = append(told.ShownCreativeIds, next.Shown.CreativeID)
		told.ShownVersions = append(told.ShownVersions, int32(next.Shown.Version))
		told.ShowingNumbers = append(told.ShowingNumbers, int32(next.Number))
		told.TakenDownNumbers = append(told.TakenDownNumbers, int32(next.TakenDown))
		told.Revisions = append(told.Revisions, line.Revision)
	}
	if len(list) == 0 {
		return nil
	}
	if err := w.later.TellLines(ctx, told); err != nil {
		return err
	}
	return w.store.outbox.Append(ctx, w.tx.Later(), list...)
}

// toldOf is what a line's display was told last.
func toldOf(row query.LinesToTellRow) order.Told {
	return order.Told{Shown: shownOf(row), Number: int(row.ShowingNumber), TakenDown: int(row.TakenDownNumber)}
}

func shownOf(row query.LinesToTellRow) order.Shown {
	return order.Shown{CreativeID: row.ShownCreativeID, Version: int(row.ShownVersion)}
}

func dueOf(row query.LinesToTellRow) order.Shown {
	if !sold(row) {
		return order.Shown{}
	}
	return order.Shown{CreativeID: row.DueCreativeID, Version: int(row.DueVersion)}
}

// sold says whether the line's display should know of it.
func sold(row query.LinesToTellRow) bool { return row.Booked && order.State(row.State) == order.Booked }

// nextOf is what to tell of a line, and whether that is anything.
func nextOf(row query.LinesToTellRow, now time.Time) (next order.Told, changed bool) {
	before := toldOf(row)
	next = before.Next(dueOf(row), row.ShownAllowed)
	switch {
	case !row.Booked || order.State(row.State) == order.Completed:
		return next, false
	case !sold(row):
		return next, true
	case !row.EndTime.After(now):
		return next, false
	}
	return next, row.Revision == 0 || next != before
}

// bookedLineOf is a line as its display is told of it, in the revision that it has.
func bookedLineOf(row query.LinesToTellRow, told order.Told) (order.BookedLine, error) {
	line := order.BookedLine{
		LineID: row.LineID, DeviceID: row.DeviceID, Revision: row.Revision,
		Flight: airtime.Flight{First: dayOf(row.StartDate), Last: dayOf(row.EndDate)},
		Start:  row.StartTime.UTC(), End: row.EndTime.UTC(),
		Removed: !sold(row), TakenDown: order.TakenDownIDs(row.LineID, told.TakenDown),
	}
	if err := json.Unmarshal(row.Dayparts, &line.Dayparts); err != nil {
		return order.BookedLine{}, fmt.Errorf("reading the dayparts of %s: %w", row.LineID, err)
	}
	if len(line.Dayparts) == 0 {
		line.Dayparts = nil
	}
	for _, slot := range row.Slots {
		line.Slots = append(line.Slots, int(slot))
	}
	slot := time.Duration(row.SlotSeconds) * time.Second
	switch told.Shown {
	case order.Shown{}:
	case shownOf(row):
		line.Showing = order.NewShowing(row.LineID, told.Number, row.ShownSha256, row.ShownMediaType, milliseconds(row.ShownDurationMs), slot)
	default:
		line.Showing = order.NewShowing(row.LineID, told.Number, row.DueSha256, row.DueMediaType, milliseconds(row.DueDurationMs), slot)
	}
	return line, nil
}

func milliseconds(n int32) time.Duration { return time.Duration(n) * time.Millisecond }

// dayOf is a date, whose time is midnight in UTC.
func dayOf(d pgtype.Date) airtime.Date { return airtime.DateOf(d.Time, time.UTC) }

// TellAgain implements order.DeliveryStore.
func (s *Store) TellAgain(ctx context.Context, lineIDs []string, now time.Time) error {
	return s.transact(ctx, func(ctx context.Context, w work) error { return w.tell(ctx, now, lineIDs...) })
}

// Sold implements order.DeliveryStore.
func (s *Store) Sold(ctx context.Context, deviceIDs []string, now time.Time, after order.LinePosition, limit int) (found []order.SoldLine, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		found, err = readSold(ctx, s.q, deviceIDs, now, after, limit)
		return err
	})
	return found, err
}

func readSold(ctx context.Context, q *query.Queries, deviceIDs []string, now time.Time, after order.LinePosition, limit int) ([]order.SoldLine, error) {
	if deviceIDs == nil {
		deviceIDs = []string{}
	}
	rows, err := q.SoldLines(ctx, query.SoldLinesParams{
		Now: now, DeviceIds: deviceIDs, AfterDevice: after.DeviceID, AfterLine: after.LineID, AtMost: int32(limit),
	})
	if err != nil {
		return nil, err
	}
	found := make([]order.SoldLine, len(rows))
	for i, r := range rows {
		row := query.LinesToTellRow(r)
		line, err := bookedLineOf(row, toldOf(row))
		if err != nil {
			return nil, err
		}
		_, behind := nextOf(row, now)
		found[i] = order.SoldLine{BookedLine: line, Behind: behind}
	}
	return found, nil
}

// maxBookedLines is how many lines the device service takes of one device.
const maxBookedLines = 10_000

// KeepSold implements order.DeliveryStore.
func (s *Store) KeepSold(ctx context.Context, deviceID string, now time.Time, use func(context.Context, []order.BookedLine) error) error {
	return s.transact(ctx, func(ctx context.Context, w work) error {
		if err := w.lockDisplays(ctx, []string{deviceID}); err != nil {
			return err
		}
		found, err := readSold(ctx, w.Queries, []string{deviceID}, now, order.LinePosition{}, maxBookedLines+1)
		if err != nil {
			return err
		}
		if len(found) > maxBookedLines {
			return fmt.Errorf("%s has more than %d lines that are booked and not over: the device service takes no more", deviceID, maxBookedLines)
		}
		lines := make([]order.BookedLine, len(found))
		for i, l := range found {
			lines[i] = l.BookedLine
		}
		ctx, cancel := context.WithTimeout(ctx, keepSoldFor)
		defer cancel()
		return use(ctx, lines)
	})
}

// keepSoldFor is less than a transaction may do nothing for.
const keepSoldFor = 1500 * time.Millisecond

// DisplayIDs implements order.DeliveryStore.
func (s *Store) DisplayIDs(ctx context.Context, after string, limit int) (ids []string, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		ids, err = s.q.DisplayIDs(ctx, query.DisplayIDsParams{After: after, AtMost: int32(limit)})
		return err
	})
	return ids, err
}
