package main

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/demo"
	"github.com/marquee-ads/marquee/platform/stack"
)

// demoToken logs an account of the demo in, see demo.Keys, and returns the access
// token.
func demoToken(ctx context.Context, s *stack.Stack, key string, a *api, conn grpc.ClientConnInterface) (string, error) {
	account, err := demo.ReadAccount(s.DemoFolder(), key)
	if err != nil {
		return "", err
	}
	method, err := a.method("marquee.account.v1.AccountService/LogIn")
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]string{"name": account.Name, "password": account.Password})
	if err != nil {
		return "", err
	}
	request := dynamicpb.NewMessage(method.Input())
	if err := protojson.Unmarshal(body, request); err != nil {
		return "", fmt.Errorf("logging the account %s in: %w", key, err)
	}
	response := dynamicpb.NewMessage(method.Output())
	if err := conn.Invoke(ctx, methodPath(method), request, response); err != nil {
		return "", fmt.Errorf("logging the account %s in: %w", key, err)
	}
	token := method.Output().Fields().ByName("access_token")
	if token == nil {
		return "", fmt.Errorf("logging the account %s in: %s has no access_token", key, method.Output().FullName())
	}
	return response.Get(token).String(), nil
}
