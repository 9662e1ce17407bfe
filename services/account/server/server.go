// Package server is the account service's gRPC API: it translates between
// protobuf and the domain.
package server

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	"github.com/marquee-ads/marquee/services/account"
)

// Server implements AccountService. Validation, authentication and the
// translation of errors are done by the interceptors before and after it.
type Server struct {
	accountv1.UnimplementedAccountServiceServer
	service *account.Service
}

// New serves a service.
func New(service *account.Service) *Server { return &Server{service: service} }

// SignUp creates an account.
func (s *Server) SignUp(ctx context.Context, req *accountv1.SignUpRequest) (*accountv1.SignUpResponse, error) {
	created, err := s.service.SignUp(ctx, req.GetRequestId(), req.GetName(), req.GetPassword())
	if err != nil {
		return nil, err
	}
	return &accountv1.SignUpResponse{Account: accountMessage(created)}, nil
}

// LogIn opens a session.
func (s *Server) LogIn(ctx context.Context, req *accountv1.LogInRequest) (*accountv1.LogInResponse, error) {
	found, session, token, err := s.service.LogIn(ctx, req.GetName(), req.GetPassword())
	if err != nil {
		return nil, err
	}
	return &accountv1.LogInResponse{
		Account:     accountMessage(found),
		AccessToken: token,
		ExpireTime:  timestamppb.New(session.TokenExpireTime),
	}, nil
}

// LogOut ends the caller's session.
func (s *Server) LogOut(ctx context.Context, _ *accountv1.LogOutRequest) (*accountv1.LogOutResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	if err := s.service.LogOut(ctx, caller); err != nil {
		return nil, err
	}
	return &accountv1.LogOutResponse{}, nil
}

// GetAccount returns the caller's account.
func (s *Server) GetAccount(ctx context.Context, req *accountv1.GetAccountRequest) (*accountv1.GetAccountResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	found, err := s.service.GetAccount(ctx, caller, req.GetAccountId())
	if err != nil {
		return nil, err
	}
	return &accountv1.GetAccountResponse{Account: accountMessage(found)}, nil
}

// GetSigningKeys returns what verifies access tokens.
func (s *Server) GetSigningKeys(context.Context, *accountv1.GetSigningKeysRequest) (*accountv1.GetSigningKeysResponse, error) {
	keys, ended, err := s.service.SigningKeys()
	if err != nil {
		return nil, err
	}
	resp := &accountv1.GetSigningKeysResponse{
		Keys:          make([]*accountv1.SigningKey, len(keys)),
		EndedSessions: make([]*accountv1.EndedSession, len(ended)),
	}
	for i, k := range keys {
		resp.Keys[i] = &accountv1.SigningKey{
			KeyId:        k.ID,
			PublicKey:    k.Public,
			SignFromTime: timestamppb.New(k.SignFrom),
			ExpireTime:   timestamppb.New(k.ExpireTime),
		}
	}
	for i, e := range ended {
		resp.EndedSessions[i] = &accountv1.EndedSession{SessionId: e.ID, ExpireTime: timestamppb.New(e.ExpireTime)}
	}
	return resp, nil
}

func accountMessage(a account.Account) *accountv1.Account {
	return &accountv1.Account{AccountId: a.ID, Name: a.Name, CreateTime: timestamppb.New(a.CreateTime)}
}
