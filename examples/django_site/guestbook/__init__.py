"""A guest book: sync and async views and middleware, which all use the database, under any server.

python manage.py migrate
python manage.py sign Ada Grace
gunicorn guestbook.wsgi              or --threads 8
uvicorn guestbook.asgi:application
hypercorn guestbook.asgi
"""
