package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// Change implements account.OrganisationStore.
func (s *Store) Change(ctx context.Context, do func(ctx context.Context, tx account.Tx) error) error {
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error { return do(ctx, tx{q}) })
}

// tx implements account.Tx.
type tx struct{ q *query.Queries }

// Claim implements account.Tx.
func (t tx) Claim(ctx context.Context, r account.Request, now time.Time) (account.Request, error) {
	claimed, err := t.q.ClaimRequest(ctx, query.ClaimRequestParams{
		CallerID: r.CallerID, RequestID: r.RequestID, Fingerprint: r.Fingerprint, ResultID: r.ResultID, ExpireTime: r.ExpireTime, Now: now,
	})
	if err != nil || claimed > 0 {
		return r, err
	}
	row, err := t.q.Request(ctx, query.RequestParams{CallerID: r.CallerID, RequestID: r.RequestID})
	return account.Request{
		CallerID: row.CallerID, RequestID: row.RequestID, Fingerprint: row.Fingerprint, ResultID: row.ResultID, ExpireTime: row.ExpireTime.UTC(),
	}, err
}

// Organisation implements account.Tx.
func (t tx) Organisation(ctx context.Context, id string) (*account.Organisation, error) {
	row, err := t.q.LockOrganisation(ctx, id)
	return found(organisation(row), err)
}

// AddOrganisation implements account.Tx.
func (t tx) AddOrganisation(ctx context.Context, o account.Organisation) error {
	return t.q.InsertOrganisation(ctx, query.InsertOrganisationParams{
		OrganisationID: o.ID, Name: o.Name, Kind: string(o.Kind), CreateTime: o.CreateTime,
	})
}

// CountMemberships implements account.Tx.
func (t tx) CountMemberships(ctx context.Context, accountID string) (int, error) {
	if err := t.q.LockAccount(ctx, accountID); err != nil {
		return 0, err
	}
	n, err := t.q.CountMemberships(ctx, accountID)
	return int(n), err
}

// Member implements account.Tx.
func (t tx) Member(ctx context.Context, organisationID, accountID string) (*account.Member, error) {
	row, err := t.q.Member(ctx, query.MemberParams{OrganisationID: organisationID, AccountID: accountID})
	return found(account.Member{
		OrganisationID: row.OrganisationID, AccountID: row.AccountID, Role: auth.Role(row.Role), CreateTime: row.CreateTime.UTC(),
	}, err)
}

// CountOwners implements account.Tx.
func (t tx) CountOwners(ctx context.Context, organisationID string) (int, error) {
	n, err := t.q.CountOwners(ctx, organisationID)
	return int(n), err
}

// PutMember implements account.Tx.
func (t tx) PutMember(ctx context.Context, m account.Member, now time.Time) error {
	if err := t.q.PutMember(ctx, query.PutMemberParams{
		OrganisationID: m.OrganisationID, AccountID: m.AccountID, Role: string(m.Role), CreateTime: m.CreateTime,
	}); err != nil {
		return err
	}
	return t.q.RaiseRolesVersion(ctx, query.RaiseRolesVersionParams{AccountID: m.AccountID, Now: now})
}

// RemoveMember implements account.Tx.
func (t tx) RemoveMember(ctx context.Context, organisationID, accountID string, now time.Time) error {
	if err := t.q.DeleteMember(ctx, query.DeleteMemberParams{OrganisationID: organisationID, AccountID: accountID}); err != nil {
		return err
	}
	return t.q.RaiseRolesVersion(ctx, query.RaiseRolesVersionParams{AccountID: accountID, Now: now})
}

// Invitation implements account.Tx.
func (t tx) Invitation(ctx context.Context, id string) (*account.Invitation, error) {
	row, err := t.q.Invitation(ctx, id)
	return found(invitation(row), err)
}

// CountInvitations implements account.Tx.
func (t tx) CountInvitations(ctx context.Context, organisationID string, now time.Time) (int, error) {
	n, err := t.q.CountInvitations(ctx, query.CountInvitationsParams{OrganisationID: organisationID, Now: now})
	return int(n), err
}

// PutInvitation implements account.Tx.
func (t tx) PutInvitation(ctx context.Context, i account.Invitation) error {
	return t.q.PutInvitation(ctx, query.PutInvitationParams{
		InvitationID: i.ID, OrganisationID: i.OrganisationID, Role: string(i.Role), InviterID: i.InviterID,
		CreateTime: i.CreateTime, ExpireTime: i.ExpireTime,
		AcceptTime: nullable(i.AcceptTime), AccepterID: i.AccepterID, RevokeTime: nullable(i.RevokeTime),
	})
}

// APIKey implements account.Tx.
func (t tx) APIKey(ctx context.Context, id string) (*account.APIKey, error) {
	row, err := t.q.LockAPIKey(ctx, id)
	return found(apiKey(row), err)
}

// CountAPIKeys implements account.Tx.
func (t tx) CountAPIKeys(ctx context.Context, organisationID string, now time.Time) (int, error) {
	n, err := t.q.CountAPIKeys(ctx, query.CountAPIKeysParams{OrganisationID: organisationID, Now: now})
	return int(n), err
}

// PutAPIKey implements account.Tx.
func (t tx) PutAPIKey(ctx context.Context, k account.APIKey) error {
	return t.q.PutAPIKey(ctx, query.PutAPIKeyParams{
		ApiKeyID: k.ID, OrganisationID: k.OrganisationID, Name: k.Name, Role: string(k.Role), SecretHash: k.SecretHash,
		CreatorID: k.CreatorID, CreateTime: k.CreateTime, ExpireTime: k.ExpireTime,
		UseTime: nullable(k.UseTime), TokenExpireTime: nullable(k.TokenExpireTime), RevokeTime: nullable(k.RevokeTime),
	})
}

// Record implements account.Tx.
func (t tx) Record(ctx context.Context, e account.Event) error { return insertEvent(ctx, t.q, e) }

// found is nil when there was no row.
func found[T any](value T, err error) (*T, error) {
	if none(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &value, nil
}

// nullable and moment are the zero time as NULL and back.
func nullable(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func moment(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func organisation(r query.Organisation) account.Organisation {
	return account.Organisation{ID: r.OrganisationID, Name: r.Name, Kind: account.OrganisationKind(r.Kind), CreateTime: r.CreateTime.UTC()}
}

func invitation(r query.Invitation) account.Invitation {
	return account.Invitation{
		ID: r.InvitationID, OrganisationID: r.OrganisationID, Role: auth.Role(r.Role), InviterID: r.InviterID,
		CreateTime: r.CreateTime.UTC(), ExpireTime: r.ExpireTime.UTC(),
		AcceptTime: moment(r.AcceptTime), AccepterID: r.AccepterID, RevokeTime: moment(r.RevokeTime),
	}
}

func apiKey(r query.ApiKey) account.APIKey {
	return account.APIKey{
		ID: r.ApiKeyID, OrganisationID: r.OrganisationID, Name: r.Name, Role: auth.Role(r.Role), SecretHash: r.SecretHash,
		CreatorID: r.CreatorID, CreateTime: r.CreateTime.UTC(), ExpireTime: r.ExpireTime.UTC(),
		UseTime: moment(r.UseTime), TokenExpireTime: moment(r.TokenExpireTime), RevokeTime: moment(r.RevokeTime),
	}
}

// Granted implements account.OrganisationStore.
func (s *Store) Granted(ctx context.Context, accountID string) (account.Granted, error) {
	var rows []query.GrantedRow
	err := s.read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Granted(ctx, accountID)
		return err
	})
	if err != nil {
		return account.Granted{}, err
	}
	if len(rows) == 0 {
		return account.Granted{}, account.ErrNotFound
	}
	granted := account.Granted{Version: rows[0].RolesVersion}
	for _, r := range rows {
		if r.OrganisationID != "" {
			if granted.Roles == nil {
				granted.Roles = make(auth.Roles, len(rows))
			}
			granted.Roles[r.OrganisationID] = auth.Role(r.Role)
		}
	}
	return granted, nil
}

// FindOrganisation implements account.OrganisationStore.
func (s *Store) FindOrganisation(ctx context.Context, organisationID string) (account.Organisation, error) {
	var row query.Organisation
	err := s.read(ctx, func(ctx context.Context) (err error) {
		row, err = s.q.Organisation(ctx, organisationID)
		return err
	})
	return organisation(row), err
}

// ListMemberships implements account.OrganisationStore.
func (s *Store) ListMemberships(ctx context.Context, accountID, before string, limit int) ([]account.Membership, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.MembershipsRow, error) {
		return s.q.Memberships(ctx, query.MembershipsParams{AccountID: accountID, Before: before, Most: int32(limit)})
	}, func(r query.MembershipsRow) account.Membership {
		return account.Membership{
			Organisation: account.Organisation{ID: r.OrganisationID, Name: r.Name, Kind: account.OrganisationKind(r.Kind), CreateTime: r.CreateTime.UTC()},
			Role:         auth.Role(r.Role),
		}
	})
}

// ListMembers implements account.OrganisationStore.
func (s *Store) ListMembers(ctx context.Context, organisationID, before string, limit int) ([]account.Member, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.MembersRow, error) {
		return s.q.Members(ctx, query.MembersParams{OrganisationID: organisationID, Before: before, Most: int32(limit)})
	}, func(r query.MembersRow) account.Member {
		return account.Member{
			OrganisationID: r.OrganisationID, AccountID: r.AccountID, Name: r.Name, Role: auth.Role(r.Role), CreateTime: r.CreateTime.UTC(),
		}
	})
}

// ListInvitations implements account.OrganisationStore.
func (s *Store) ListInvitations(ctx context.Context, organisationID, before string, limit int) ([]account.Invitation, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.Invitation, error) {
		return s.q.Invitations(ctx, query.InvitationsParams{OrganisationID: organisationID, Before: before, Most: int32(limit)})
	}, invitation)
}

// ListAPIKeys implements account.OrganisationStore.
func (s *Store) ListAPIKeys(ctx context.Context, organisationID, before string, limit int) ([]account.APIKey, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.ApiKey, error) {
		return s.q.APIKeys(ctx, query.APIKeysParams{OrganisationID: organisationID, Before: before, Most: int32(limit)})
	}, apiKey)
}

// page reads rows and turns each into what the domain knows.
func page[Row, T any](ctx context.Context, s *Store, query func(context.Context) ([]Row, error), turn func(Row) T) ([]T, error) {
	var rows []Row
	err := s.read(ctx, func(ctx context.Context) (err error) {
		rows, err = query(ctx)
		return err
	})
	list := make([]T, len(rows))
	for i, r := range rows {
		list[i] = turn(r)
	}
	return list, err
}
