package ssegateway

const backendEnv = "SSEGATEWAY_TEST_BACKEND"

func backend(string) int { return 1 }
