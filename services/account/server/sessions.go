package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/service"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	"github.com/marquee-ads/marquee/services/account"
)

// LogIn opens a session.
func (s *Server) LogIn(ctx context.Context, req *accountv1.LogInRequest) (*accountv1.LogInResponse, error) {
	in, err := s.service.LogIn(ctx, account.Credentials{
		Name: req.GetName(), Password: req.GetPassword(), DeviceToken: req.GetDeviceToken(),
	}, origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.LogInResponse{
		Account:           accountMessage(in.Account),
		AccessToken:       in.Tokens.Access,
		ExpireTime:        timestamppb.New(in.Tokens.Session.TokenExpireTime),
		RefreshToken:      in.Tokens.Refresh,
		RefreshExpireTime: timestamppb.New(in.Tokens.Session.ExpireTime),
		DeviceToken:       in.DeviceToken,
	}, nil
}

// RefreshSession trades a refresh token for the next tokens.
func (s *Server) RefreshSession(ctx context.Context, req *accountv1.RefreshSessionRequest) (*accountv1.RefreshSessionResponse, error) {
	tokens, err := s.service.Refresh(ctx, req.GetRequestId(), req.GetRefreshToken(), origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.RefreshSessionResponse{
		AccessToken:       tokens.Access,
		ExpireTime:        timestamppb.New(tokens.Session.TokenExpireTime),
		RefreshToken:      tokens.Refresh,
		RefreshExpireTime: timestamppb.New(tokens.Session.ExpireTime),
	}, nil
}

// LogOut ends the caller's session.
func (s *Server) LogOut(ctx context.Context, _ *accountv1.LogOutRequest) (*accountv1.LogOutResponse, error) {
	err := s.service.LogOut(ctx, caller(ctx), origin(ctx))
	return &accountv1.LogOutResponse{}, err
}

// RevokeSession ends one of the caller's sessions.
func (s *Server) RevokeSession(ctx context.Context, req *accountv1.RevokeSessionRequest) (*accountv1.RevokeSessionResponse, error) {
	err := s.service.Revoke(ctx, caller(ctx), req.GetSessionId(), origin(ctx))
	return &accountv1.RevokeSessionResponse{}, err
}

// ListSessions returns a page of the caller's sessions.
func (s *Server) ListSessions(ctx context.Context, req *accountv1.ListSessionsRequest) (*accountv1.ListSessionsResponse, error) {
	by := caller(ctx)
	sessions, next, err := s.service.ListSessions(ctx, by, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListSessionsResponse{Sessions: service.Messages(sessions, func(session account.Session) *accountv1.Session {
		return &accountv1.Session{
			SessionId:   session.ID,
			CreateTime:  timestamppb.New(session.CreateTime),
			RefreshTime: timestamppb.New(session.RefreshTime),
			ExpireTime:  timestamppb.New(session.ExpireTime),
			Address:     session.Address,
			Current:     session.ID == by.SessionID,
			EndTime:     timestamp(session.EndTime),
			EndReason:   endReason(session.EndReason),
		}
	}), NextPageToken: next}, nil
}

// timestamp is absent for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func endReason(r account.EndReason) accountv1.SessionEndReason {
	return accountv1.SessionEndReason(accountv1.SessionEndReason_value["SESSION_END_REASON_"+string(r)])
}

// ChangePassword sets a new password.
func (s *Server) ChangePassword(ctx context.Context, req *accountv1.ChangePasswordRequest) (*accountv1.ChangePasswordResponse, error) {
	err := s.service.ChangePassword(ctx, caller(ctx), req.GetCurrentPassword(), req.GetNewPassword(), origin(ctx))
	return &accountv1.ChangePasswordResponse{}, err
}

// ListAuditEvents returns a page of what happened to the caller's account.
func (s *Server) ListAuditEvents(ctx context.Context, req *accountv1.ListAuditEventsRequest) (*accountv1.ListAuditEventsResponse, error) {
	events, next, err := s.service.ListEvents(ctx, caller(ctx), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListAuditEventsResponse{Events: service.Messages(events, eventMessage), NextPageToken: next}, nil
}

func eventMessage(e account.Event) *accountv1.AuditEvent {
	return &accountv1.AuditEvent{
		EventId:        e.ID,
		Time:           timestamppb.New(e.Time),
		Kind:           accountv1.AuditKind(accountv1.AuditKind_value["AUDIT_KIND_"+string(e.Kind)]),
		ActorId:        e.ActorID,
		SessionId:      e.SessionID,
		Address:        e.Address,
		AccountId:      e.AccountID,
		OrganisationId: e.OrganisationID,
		SubjectId:      e.SubjectID,
		Role:           e.Role.Proto(),
	}
}
