package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// askApproval asks the owners of booked displays to approve the newest version of the
// creative that is shown there; those who were asked are not asked again. On an
// organisation's own displays it is approved.
func (w work) askApproval(ctx context.Context, now time.Time, creativeID string) error {
	// A version that comes at this moment asks of the lines that are booked, or waits
	// until these are.
	if _, err := w.ShareCreative(ctx, creativeID); err != nil {
		return err
	}
	return w.later.AskApprovals(ctx, query.AskApprovalsParams{CreativeID: creativeID, Now: now})
}

// ListApprovals implements order.Store.
func (s *Store) ListApprovals(ctx context.Context, ownerID string, state order.ApprovalState, after *order.ApprovalPosition, limit int) (found []order.Approval, err error) {
	var behind order.ApprovalPosition
	if after != nil {
		behind = *after
	}
	err = s.db.Read(ctx, func(ctx context.Context) error {
		var rows []query.ApprovalRow
		if state == order.Pending {
			pending, err := s.q.PendingApprovals(ctx, query.PendingApprovalsParams{
				OwnerID: ownerID, AfterTime: behind.CreateTime, AfterCreativeID: behind.CreativeID, AfterVersion: int32(behind.Version), AtMost: int32(limit),
			})
			if err != nil {
				return err
			}
			for _, row := range pending {
				rows = append(rows, query.ApprovalRow(row))
			}
		} else {
			all, err := s.q.Approvals(ctx, query.ApprovalsParams{
				OwnerID: ownerID, State: string(state),
				AfterTime: behind.CreateTime, AfterCreativeID: behind.CreativeID, AfterVersion: int32(behind.Version), AtMost: int32(limit),
			})
			if err != nil {
				return err
			}
			for _, row := range all {
				rows = append(rows, query.ApprovalRow(row))
			}
		}
		found = make([]order.Approval, len(rows))
		for i, row := range rows {
			if found[i], err = approvalWithCreative(row); err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

func approvalOf(a query.Approval) order.Approval {
	return order.Approval{
		CreativeID: a.CreativeID, Version: int(a.Version), OwnerID: a.OwnerID, State: order.ApprovalState(a.State), Reason: a.Reason,
		CreateTime: a.CreateTime.UTC(), DecideTime: timeOf(a.DecideTime),
	}
}

func approvalWithCreative(row query.ApprovalRow) (order.Approval, error) {
	c, err := creativeOf(row.Creative, row.CreativeVersion)
	if err != nil {
		return order.Approval{}, err
	}
	a := approvalOf(row.Approval)
	a.Creative = &c
	return a, nil
}

// DecideApproval implements order.Store.
func (s *Store) DecideApproval(ctx context.Context, d order.Decision) (decided order.Approval, err error) {
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		if _, err := w.LockCreative(ctx, d.CreativeID); none(err) {
			return order.ErrApprovalNotFound.Because(err)
		} else if err != nil {
			return err
		}
		before, err := w.approval(ctx, d)
		if err != nil {
			return err
		}
		if d.State == order.Approved && !before.Creative.TakeDownTime.IsZero() {
			return order.ErrCreativeTakenDown
		}
		if before.State == d.State && before.Reason == d.Reason {
			decided = before
			return nil
		}
		if err := w.later.DecideApproval(ctx, query.DecideApprovalParams{
			CreativeID: d.CreativeID, Version: int32(d.Version), OwnerID: d.OwnerID, State: string(d.State), Reason: d.Reason, DecideTime: d.Time,
		}); err != nil {
			return err
		}
		if before.State != d.State {
			if err := w.tellOfCreative(ctx, d.Time, d.CreativeID, d.OwnerID); err != nil {
				return err
			}
		}
		decided, err = w.approval(ctx, d)
		return err
	})
	return decided, err
}

// approval is what a decision is about.
func (w work) approval(ctx context.Context, d order.Decision) (order.Approval, error) {
	row, err := w.Approval(ctx, query.ApprovalParams{CreativeID: d.CreativeID, Version: int32(d.Version), OwnerID: d.OwnerID})
	if none(err) {
		return order.Approval{}, order.ErrApprovalNotFound.Because(err)
	}
	if err != nil {
		return order.Approval{}, err
	}
	return approvalWithCreative(row)
}
