"""A web server with a page to draw on: FastAPI and uvicorn."""
