package postgres

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// RepeatedCreative implements order.Store.
func (s *Store) RepeatedCreative(ctx context.Context, r order.Request, organisationID string) (c order.Creative, repeated bool, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		first, err := s.q.RepeatedRequest(ctx, query.RepeatedRequestParams{CallerID: r.CallerID, RequestID: r.RequestID, Now: r.Time})
		if none(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !hmac.Equal(first.Fingerprint, r.Fingerprint) {
			return order.ErrRequestIDReused
		}
		repeated = true
		c, err = creative(ctx, s.q, organisationID, first.MadeID)
		return err
	})
	return c, repeated, err
}

// CreateCreative implements order.Store.
func (s *Store) CreateCreative(ctx context.Context, r order.Request, c order.Creative) (order.Creative, error) {
	made := c
	err := s.transact(ctx, func(ctx context.Context, w work) error {
		before, err := w.once(ctx, r, c.ID)
		if err != nil {
			return err
		}
		if before != "" {
			made, err = creative(ctx, w.Queries, c.OrganisationID, before)
			return err
		}
		if err := w.later.LockCreativesOf(ctx, c.OrganisationID); err != nil {
			return err
		}
		n, err := w.CountCreatives(ctx, c.OrganisationID)
		if err != nil {
			return err
		}
		if n >= order.MaxCreatives {
			return order.ErrTooManyCreatives
		}
		v := c.Newest()
		if err := w.later.InsertCreative(ctx, query.InsertCreativeParams{
			CreativeID: c.ID, OrganisationID: c.OrganisationID, Title: c.Title, Version: int32(v.Number), CreateTime: c.CreateTime,
		}); err != nil {
			return err
		}
		return w.addVersion(ctx, c.ID, v)
	})
	return made, err
}

func (w work) addVersion(ctx context.Context, creativeID string, v order.Version) error {
	var text []byte
	if v.Text != nil {
		var err error
		if text, err = json.Marshal(v.Text); err != nil {
			return fmt.Errorf("writing a text: %w", err)
		}
	}
	return w.later.InsertCreativeVersion(ctx, query.InsertCreativeVersionParams{
		CreativeID: creativeID, Version: int32(v.Number), TextContent: text, Sha256: v.SHA256, MediaType: v.MediaType,
		WidthPx: int32(v.Width), HeightPx: int32(v.Height), DurationMs: int32(v.Duration.Milliseconds()), Thumbnail: v.Thumbnail, CreateTime: v.CreateTime,
	})
}

// creative is one with its newest version.
func creative(ctx context.Context, q *query.Queries, organisationID, id string) (order.Creative, error) {
	row, err := q.Creative(ctx, query.CreativeParams{CreativeID: id, OrganisationID: organisationID})
	if none(err) {
		return order.Creative{}, order.ErrCreativeNotFound.Because(err)
	}
	if err != nil {
		return order.Creative{}, err
	}
	return creativeOf(row.Creative, row.CreativeVersion)
}

func creativeOf(c query.Creative, v query.CreativeVersion) (order.Creative, error) {
	version, err := versionOf(v)
	if err != nil {
		return order.Creative{}, err
	}
	return order.Creative{
		ID: c.CreativeID, OrganisationID: c.OrganisationID, Title: c.Title, TakeDownTime: timeOf(c.TakeDownTime),
		Versions: []order.Version{version}, CreateTime: c.CreateTime.UTC(),
	}, nil
}

func versionOf(v query.CreativeVersion) (order.Version, error) {
	version := order.Version{
		Number: int(v.Version), CreateTime: v.CreateTime.UTC(),
		Contents: order.Contents{
			SHA256: v.Sha256, MediaType: v.MediaType, Width: int(v.WidthPx), Height: int(v.HeightPx),
			Duration: time.Duration(v.DurationMs) * time.Millisecond, Thumbnail: v.Thumbnail,
		},
	}
	if v.TextContent != nil {
		if err := json.Unmarshal(v.TextContent, &version.Text); err != nil {
			return order.Version{}, fmt.Errorf("reading the text of %s: %w", v.CreativeID, err)
		}
	}
	return version, nil
}

// FindCreative implements order.Store.
func (s *Store) FindCreative(ctx context.Context, organisationID, id string, all bool) (c order.Creative, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		if c, err = creative(ctx, s.q, organisationID, id); err != nil || !all {
			return err
		}
		return readVersions(ctx, s.q, &c)
	})
	return c, err
}

// readVersions makes a creative one with all its versions and their approvals.
func readVersions(ctx context.Context, q *query.Queries, c *order.Creative) error {
	rows, err := q.CreativeVersions(ctx, c.ID)
	if err != nil {
		return err
	}
	approvals, err := q.ApprovalsOfCreative(ctx, query.ApprovalsOfCreativeParams{CreativeID: c.ID, AtMost: order.MaxShownApprovals})
	if err != nil {
		return err
	}
	c.Versions = make([]order.Version, len(rows))
	for i, row := range rows {
		v, err := versionOf(row.CreativeVersion)
		if err != nil {
			return err
		}
		// Both lists begin with the newest.
		for len(approvals) > 0 && approvals[0].Approval.Version >= row.CreativeVersion.Version {
			if approvals[0].Approval.Version == row.CreativeVersion.Version {
				v.Approvals = append(v.Approvals, approvalOf(approvals[0].Approval))
			}
			approvals = approvals[1:]
		}
		c.Versions[i] = v
	}
	return nil
}

// ListCreatives implements order.Store.
func (s *Store) ListCreatives(ctx context.Context, organisationID, before string, limit int) (found []order.Creative, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		rows, err := s.q.Creatives(ctx, query.CreativesParams{OrganisationID: organisationID, Before: before, AtMost: int32(limit)})
		if err != nil {
			return err
		}
		found = make([]order.Creative, len(rows))
		for i, row := range rows {
			if found[i], err = creativeOf(row.Creative, row.CreativeVersion); err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// changeCreative runs do in a transaction while nobody else can change the creative,
// and returns what it is like then. do gets it as it is before.
func (s *Store) changeCreative(ctx context.Context, organisationID, id string, do func(context.Context, work, order.Creative) error) (c order.Creative, err error) {
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		if _, err := w.LockCreative(ctx, id); none(err) {
			return order.ErrCreativeNotFound.Because(err)
		} else if err != nil {
			return err
		}
		before, err := creative(ctx, w.Queries, organisationID, id)
		if err != nil {
			return err
		}
		if err := do(ctx, w, before); err != nil {
			return err
		}
		c, err = creative(ctx, w.Queries, organisationID, id)
		return err
	})
	return c, err
}

// UpdateCreative implements order.Store.
func (s *Store) UpdateCreative(ctx context.Context, e order.Edit) (order.Creative, error) {
	return s.changeCreative(ctx, e.OrganisationID, e.ID, func(ctx context.Context, w work, c order.Creative) error {
		newest := c.Newest()
		same := newest.SHA256 == e.Contents.SHA256 && newest.MediaType == e.Contents.MediaType
		if same && c.Title == e.Title {
			return nil
		}
		if e.Version != 0 && e.Version != newest.Number {
			return order.ErrCreativeChanged
		}
		if same {
			return w.later.ChangeCreative(ctx, query.ChangeCreativeParams{CreativeID: e.ID, Title: e.Title, Version: int32(newest.Number)})
		}
		if newest.Number >= order.MaxVersions {
			return order.ErrTooManyVersions
		}
		if err := w.fitsItsLines(ctx, e); err != nil {
			return err
		}
		v := order.Version{Number: newest.Number + 1, Text: e.Text, Contents: e.Contents, CreateTime: e.Time}
		if err := w.addVersion(ctx, e.ID, v); err != nil {
			return err
		}
		if err := w.later.ChangeCreative(ctx, query.ChangeCreativeParams{CreativeID: e.ID, Title: e.Title, Version: int32(v.Number)}); err != nil {
			return err
		}
		if err := w.askApproval(ctx, e.Time, e.ID); err != nil {
			return err
		}
		// Nobody else has approved the version yet.
		return w.tellOfCreative(ctx, e.Time, e.ID, e.OrganisationID)
	})
}

// fitsItsLines makes sure that an edit can be shown in every line that is to show the
// creative.
func (w work) fitsItsLines(ctx context.Context, e order.Edit) error {
	if e.Contents.ShortestSlot() == 0 {
		return nil
	}
	lines, err := w.LinesWithShorterSlots(ctx, query.LinesWithShorterSlotsParams{
		CreativeID: e.ID, Seconds: e.Contents.ShortestSlot().Seconds(), Now: e.Time,
	})
	if err != nil || len(lines) == 0 {
		return err
	}
	return doesNotFit("content.media_sha256", lines[0])
}

func doesNotFit(path, lineID string) error {
	return order.ErrCreativeDoesNotFit.WithField(path, "creative.fits", "is longer than a slot of the display of "+lineID)
}

// TakeDownCreative implements order.Store.
func (s *Store) TakeDownCreative(ctx context.Context, organisationID, id string, now time.Time) (order.Creative, error) {
	return s.changeCreative(ctx, organisationID, id, func(ctx context.Context, w work, c order.Creative) error {
		if !c.TakeDownTime.IsZero() {
			return nil
		}
		if err := w.later.TakeDownCreative(ctx, query.TakeDownCreativeParams{CreativeID: id, TakeDownTime: now}); err != nil {
			return err
		}
		return w.tellOfCreative(ctx, now, id, "")
	})
}

// tellOfCreative tells displays of what they show now, those of one owner or, without
// one, all.
func (w work) tellOfCreative(ctx context.Context, now time.Time, creativeID, ownerID string) error {
	lines, err := w.BookedLinesOfCreative(ctx, query.BookedLinesOfCreativeParams{CreativeID: creativeID, OwnerID: ownerID, Now: now})
	if err != nil {
		return err
	}
	return w.tell(ctx, now, lines...)
}

// showable returns the newest contents of a creative that lines are to show, which
// nobody changes or takes down until the transaction ends. Errors:
// order.ErrCreativeNotFound, order.ErrCreativeTakenDown.
func (w work) showable(ctx context.Context, organisationID, creativeID string) (order.Contents, error) {
	if _, err := w.ShareCreative(ctx, creativeID); none(err) {
		return order.Contents{}, order.ErrCreativeNotFound.Because(err)
	} else if err != nil {
		return order.Contents{}, err
	}
	c, err := creative(ctx, w.Queries, organisationID, creativeID)
	if err != nil {
		return order.Contents{}, err
	}
	if !c.TakeDownTime.IsZero() {
		return order.Contents{}, order.ErrCreativeTakenDown
	}
	return c.Newest().Contents, nil
}

// SetLineCreative implements order.Store.
func (s *Store) SetLineCreative(ctx context.Context, l order.LineCreative) (changed order.Order, err error) {
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		o, err := w.lockOrder(ctx, l.OrganisationID, l.OrderID)
		if err != nil {
			return err
		}
		if _, err := o.State.After(order.SetCreative); err != nil {
			return err
		}
		// What it is about of the order.
		if o.Lines, err = l.Lines(o); err != nil {
			return err
		}
		if err := w.show(ctx, l, o); err != nil {
			return err
		}
		if o.State == order.Booked {
			if l.CreativeID != "" {
				if err := w.askApproval(ctx, l.Time, l.CreativeID); err != nil {
					return err
				}
			}
			if err := w.tell(ctx, l.Time, lineIDs(o)...); err != nil {
				return err
			}
		}
		changed, err = findOrder(ctx, w.Queries, l.OrganisationID, l.OrderID)
		return err
	})
	return changed, err
}

// show makes the lines of an order, which is locked, show a creative that they can.
func (w work) show(ctx context.Context, l order.LineCreative, o order.Order) error {
	if l.CreativeID != "" {
		contents, err := w.showable(ctx, l.OrganisationID, l.CreativeID)
		if err != nil {
			return err
		}
		for _, line := range o.Lines {
			if !contents.Fits(line.SlotLength) {
				return doesNotFit("creative_id", line.ID)
			}
		}
	}
	if err := w.later.LockLinesOf(ctx, l.OrderID); err != nil {
		return err
	}
	return w.later.SetLineCreative(ctx, query.SetLineCreativeParams{CreativeID: l.CreativeID, LineIds: lineIDs(o)})
}
