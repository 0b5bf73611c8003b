import java.net.Socket;
import java.security.cert.X509Certificate;
import javax.net.ssl.*;

/** Two connections over TLS 1.2 with one context. Arguments: the port, and HTTPS for a check of the host's name. */
public class Resume {
    static class AnyServer extends X509ExtendedTrustManager {
        public void checkClientTrusted(X509Certificate[] chain, String type) {}
        public void checkServerTrusted(X509Certificate[] chain, String type) {}
        public void checkClientTrusted(X509Certificate[] chain, String type, Socket socket) {}
        public void checkServerTrusted(X509Certificate[] chain, String type, Socket socket) {}
        public void checkClientTrusted(X509Certificate[] chain, String type, SSLEngine engine) {}
        public void checkServerTrusted(X509Certificate[] chain, String type, SSLEngine engine) {}
        public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
    }

    public static void main(String[] args) throws Exception {
        SSLContext context = SSLContext.getInstance("TLSv1.2");
        context.init(null, new TrustManager[] {new AnyServer()}, null);
        for (int n = 0; n < 2; n++) {
            SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("localhost", Integer.parseInt(args[0]));
            if (args.length > 1) {
                SSLParameters parameters = socket.getSSLParameters();
                parameters.setEndpointIdentificationAlgorithm(args[1]);
                socket.setSSLParameters(parameters);
            }
            socket.getOutputStream().write("hello\n".getBytes());
            socket.getInputStream().read(new byte[6]);
            socket.close();
        }
    }
}
