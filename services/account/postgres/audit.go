package postgres

import (
	"context"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

func insertEvent(ctx context.Context, q *query.Queries, e account.Event) error {
	return q.InsertEvent(ctx, query.InsertEventParams{
		EventID: e.ID, EventTime: e.Time, Kind: string(e.Kind), AccountID: e.AccountID, OrganisationID: e.OrganisationID,
		ActorID: e.ActorID, SessionID: e.SessionID, SubjectID: e.SubjectID, Role: string(e.Role), Address: e.Address,
	})
}

// ListEvents implements account.Store.
func (s *Store) ListEvents(ctx context.Context, accountID, before string, limit int) ([]account.Event, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.AccountEventsRow, error) {
		return s.q.AccountEvents(ctx, query.AccountEventsParams{AccountID: accountID, Before: before, Most: int32(limit)})
	}, event)
}

// ListOrganisationEvents implements account.OrganisationStore.
func (s *Store) ListOrganisationEvents(ctx context.Context, organisationID, before string, limit int) ([]account.Event, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.OrganisationEventsRow, error) {
		return s.q.OrganisationEvents(ctx, query.OrganisationEventsParams{OrganisationID: organisationID, Before: before, Most: int32(limit)})
	}, func(r query.OrganisationEventsRow) account.Event { return event(query.AccountEventsRow(r)) })
}

func event(r query.AccountEventsRow) account.Event {
	return account.Event{
		ID: r.EventID, Time: r.EventTime.UTC(), Kind: account.EventKind(r.Kind), AccountID: r.AccountID, OrganisationID: r.OrganisationID,
		ActorID: r.ActorID, SessionID: r.SessionID, SubjectID: r.SubjectID, Role: auth.Role(r.Role), Address: r.Address,
	}
}
