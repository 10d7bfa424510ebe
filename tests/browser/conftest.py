def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", help="write app.png, app_phone.png and app_error.png there")
