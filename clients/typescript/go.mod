module github.com/qaexchange/notification/clients/typescript

go 1.26.0

ignore ./node_modules
