package order

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

// ApprovalState is what a display owner says to a version.
type ApprovalState string

// What display owners say.
const (
	Pending  ApprovalState = "PENDING"
	Approved ApprovalState = "APPROVED"
	Rejected ApprovalState = "REJECTED"
)

// Approval is what one display owner says to one version of a creative.
type Approval struct {
	CreativeID string
	Version    int
	// OwnerID is the organisation whose displays it is about.
	OwnerID    string
	State      ApprovalState
	Reason     string // why it was rejected
	CreateTime time.Time
	DecideTime time.Time // zero while it is not decided
	// Creative has this version alone; nil where nobody asked for it.
	Creative *Creative
}

// What callers that deal with approvals are told.
var (
	ErrApproval         = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the decision is not possible")
	ErrApprovalNotFound = fault.New(fault.NotFound, "APPROVAL_NOT_FOUND", "nobody has asked the organisation to approve this version")
)

// ApprovalStore keeps what display owners say; it is a part of CreativeStore.
type ApprovalStore interface {
	// ListApprovals returns up to limit approvals of an owner behind a position, the
	// oldest first, in any state when it is empty. Of what was taken down nothing is
	// pending.
	ListApprovals(ctx context.Context, ownerID string, state ApprovalState, after *ApprovalPosition, limit int) ([]Approval, error)
	// DecideApproval changes nothing when that is the decision. Errors:
	// ErrApprovalNotFound, ErrCreativeTakenDown.
	DecideApproval(ctx context.Context, d Decision) (Approval, error)
}

// ApprovalPosition is a place in a list of approvals.
type ApprovalPosition struct {
	CreateTime time.Time
	CreativeID string
	Version    int
}

// Decision is what an owner decides.
type Decision struct {
	OwnerID    string
	CreativeID string
	Version    int
	State      ApprovalState // Approved or Rejected
	Reason     string
	Time       time.Time
}

// position is where an approval is in a list, as tokens have it.
func (a Approval) position() string {
	return fmt.Sprintf("%d,%s,%d", a.CreateTime.UnixMicro(), a.CreativeID, a.Version)
}

// approvalPosition reads what position wrote. Errors: paging.ErrTokenInvalid.
func approvalPosition(text string) (*ApprovalPosition, error) {
	if text == "" {
		return nil, nil // the beginning
	}
	parts := strings.Split(text, ",")
	if len(parts) != 3 {
		return nil, paging.ErrTokenInvalid
	}
	// 54 bits are 285 years either way, which Postgres takes.
	micros, err := strconv.ParseInt(parts[0], 10, 54)
	if err != nil {
		return nil, paging.ErrTokenInvalid.Because(err)
	}
	version, err := strconv.ParseInt(parts[2], 10, 32)
	if err != nil {
		return nil, paging.ErrTokenInvalid.Because(err)
	}
	return &ApprovalPosition{CreateTime: time.UnixMicro(micros).UTC(), CreativeID: parts[1], Version: int(version)}, nil
}

// ListApprovals returns a page of what an organisation was asked to approve, the
// oldest first, and the token of the next, empty on the last. An empty state is any.
// Errors: paging.ErrTokenInvalid.
func (s *Service) ListApprovals(ctx context.Context, ownerID string, state ApprovalState, page paging.Page) ([]Approval, string, error) {
	of := "approvals of " + ownerID
	text, err := page.Open(of)
	if err != nil {
		return nil, "", err
	}
	after, err := approvalPosition(text)
	if err != nil {
		return nil, "", err
	}
	size := page.Limit()
	found, err := s.store.ListApprovals(ctx, ownerID, state, after, size+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading a page of the %s: %w", of, err)
	}
	if len(found) <= size {
		return found, "", nil
	}
	return found[:size], paging.Seal(of, found[size-1].position()), nil
}

// DecideApproval approves a version for all displays of an owner, or rejects it for a
// reason. Errors: ErrApproval, ErrApprovalNotFound, ErrCreativeTakenDown.
func (s *Service) DecideApproval(ctx context.Context, ownerID, creativeID string, version int, approve bool, reason string) (Approval, error) {
	d := Decision{OwnerID: ownerID, CreativeID: creativeID, Version: version, State: Approved, Time: s.moment()}
	reason = strings.TrimSpace(reason)
	switch {
	case approve && reason != "":
		return Approval{}, ErrApproval.WithField("reason", "reason.of_rejection", "is not empty: only a rejection has a reason")
	case !approve && reason == "":
		return Approval{}, ErrApproval.WithField("reason", "reason.of_rejection", "is empty: say why it is rejected")
	case strings.ContainsFunc(reason, breaksText), strings.ContainsFunc(reason, turnsText):
		return Approval{}, ErrApproval.WithField("reason", "reason.characters", "holds control characters")
	case !approve:
		d.State, d.Reason = Rejected, reason
	}
	decided, err := s.store.DecideApproval(ctx, d)
	if err != nil {
		return Approval{}, fmt.Errorf("deciding about %s: %w", creativeID, err)
	}
	return decided, nil
}
